"""Attack an nnx network: `python experiments/examples/attack_nnx.py`.

The network is an argument of the jitted attack, so other weights do not compile again.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from l2ljax import attacks, data, losses, threat


class Network(nnx.Module):
    """Two linear layers; images [B, 8, 8, 1] -> logits [B, 10]."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 32, rngs=rngs)
        self.second = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        return self.second(nnx.relu(self.first(x.reshape(len(x), -1))))


def main() -> dict[str, float]:
    """Attack with PGD and with the strongest of two attacks; returns the mean cross-entropies."""
    model = Network(nnx.Rngs(0))
    model.eval()
    batch = next(data.batches(data.load("digits").test, 64))
    x, y = jnp.asarray(batch.x), jnp.asarray(batch.y)
    ball = threat.linf(0.1)
    pgd = attacks.pgd(ball, step_size=0.025, steps=10)
    both = attacks.best_of([attacks.restarts(pgd, 3), attacks.create("momentum10", ball)])
    found = {"clean": float(losses.cross_entropy(model(x), y).mean())}
    for name, attack in {"pgd": pgd, "both": both}.items():
        x_adv = jax.jit(attack)(model, jax.random.key(1), x, y)
        found[name] = float(losses.cross_entropy(model(x_adv), y).mean())
    print(", ".join(f"{name}: loss {loss:.3f}" for name, loss in found.items()))
    return found


if __name__ == "__main__":
    main()
