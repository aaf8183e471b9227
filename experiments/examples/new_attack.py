"""A new attack is an optax rule of the image: `python experiments/examples/new_attack.py`.

Registered, it has a name wherever attacks have one: python experiments/digits.py --import=new_attack --attacks=nesterov
"""

import jax
import jax.numpy as jnp
import optax

from l2ljax import attacks, data, losses, models, threat
from l2ljax.types import Attack


def nesterov(ball: threat.Ball, *, steps: int = 10, decay: float = 1.0) -> Attack:
    """Step along the sign of g + decay m, m = decay m + g: PGD with Nesterov's momentum, from the image itself."""
    rule = optax.chain(
        optax.trace(decay, nesterov=True),
        optax.stateless(lambda g, _: ball.steepest(g)),
        optax.scale(-2.5 * ball.eps / steps),  # rules descend; they are handed the gradient of minus the loss
    )
    return attacks.gradient_attack(ball, rule, steps=steps)


attacks.register("nesterov", nesterov)


def main() -> dict[str, float]:
    """Attack an untrained network by names, the new one included; returns the mean cross-entropies."""
    batch = next(data.batches(data.load("digits").test, 64))
    x, y = jnp.asarray(batch.x), jnp.asarray(batch.y)
    clf = models.create("digits_cnn")
    logits_fn = jax.tree_util.Partial(clf.logits, clf.init(jax.random.key(0), x))
    ball = threat.linf(0.1)
    found = {"clean": float(losses.cross_entropy(logits_fn(x), y).mean())}
    for name in ("pgd10", "nesterov10", "nesterov10+restarts2"):
        x_adv = jax.jit(attacks.create(name, ball))(logits_fn, jax.random.key(1), x, y)
        assert jnp.abs(x_adv - x).max() <= ball.eps + 1e-6
        found[name] = float(losses.cross_entropy(logits_fn(x_adv), y).mean())
    print(", ".join(f"{name}: loss {loss:.3f}" for name, loss in found.items()))
    return found


if __name__ == "__main__":
    main()
