"""Train a network of your own on arrays of your own with RNN-Adv, and judge it with AutoAttack.

python experiments/examples/train_your_network.py 30          # epochs
"""

import sys

import jax
from flax import nnx
from sklearn.datasets import load_digits

import l2ljax
from l2ljax import data, devices, evaluate, threat


class Network(nnx.Module):
    """A convolution, BatchNorm and a linear layer; images [B, 8, 8, 1] -> logits [B, 10]."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.convolution = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.linear = nnx.Linear(4 * 4 * 16, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        x = nnx.relu(self.norm(self.convolution(x)))
        return self.linear(nnx.avg_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1))


def main(epochs: int, test_size: int | None = None, only: tuple[str, ...] = ()) -> tuple[float, float]:
    """Train and judge; returns the clean and the robust accuracy."""
    digits = load_digits()
    images, labels = (digits.images[..., None] / 16).astype("float32"), digits.target

    ball = threat.linf(0.1)
    result = l2ljax.fit(Network(nnx.Rngs(0)), (images, labels), method="rnn_adv", ball=ball, epochs=epochs)
    x, y = (a[:test_size] for a in result.dataset.test)
    judged = evaluate.run_standard_evaluation(
        result.logits_fn, data.pixels(x), y, ball=ball, only=only, key=jax.random.key(0)
    )
    print(f"clean {judged.clean_acc:.2%}, under AutoAttack {judged.robust_acc:.2%}")
    return judged.clean_acc, judged.robust_acc


if __name__ == "__main__":
    devices.one_per_core()
    main(epochs=int(sys.argv[1]) if len(sys.argv) > 1 else 30)
