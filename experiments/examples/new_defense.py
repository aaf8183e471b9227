"""A new defense is an attacker and a criterion: `python experiments/examples/new_defense.py 5`, for 5 epochs.

Registered, it trains as any other: python experiments/digits.py --import=new_defense --method=smoothed
"""

import sys

import jax

import l2ljax
from l2ljax import attacks, defenses, devices, evaluate, threat
from l2ljax.types import Classifier, Defense


def smoothed(
    classifier: Classifier, ball: threat.Ball, *, steps: int = 5, size: float = 0.4, axis_name: str | None = None
) -> Defense:
    """Train on PGD from the image itself, whose steps are `size` radii long."""
    return defenses.pgd_adv(
        classifier, ball, steps=steps, step_size=size * ball.eps, start="clean", clean_weight=0.5, axis_name=axis_name
    )


defenses.register("smoothed", smoothed)


def main(epochs: int, train_size: int | None = None) -> dict[str, float]:
    """Train with the new defense by its name; returns the accuracies."""
    ball = threat.linf(0.1)
    result = l2ljax.fit(
        "digits_cnn", "digits", method="smoothed", ball=ball, epochs=epochs, train_size=train_size,
        options={"size": 0.5},
    )  # fmt: skip
    judged = evaluate.evaluate(
        result.logits_fn,
        result.dataset.test,
        {"pgd10": attacks.create("pgd10", ball)},
        key=jax.random.key(1),
        batch_size=297,
    )
    print(f"clean {judged.clean_acc:.2%}, under PGD-10 {judged.worst_case_acc:.2%}")
    return {"clean": judged.clean_acc, "pgd10": judged.worst_case_acc}


if __name__ == "__main__":
    devices.one_per_core()
    main(epochs=int(sys.argv[1]) if len(sys.argv) > 1 else 5)
