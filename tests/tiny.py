"""What the tests of training need, quick to compile: a network with BatchNorm and dropout, and small attackers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from l2ljax import defenses
from l2ljax.models.layers import BatchNorm, Conv, dropout
from l2ljax.types import Classifier, example_keys


def small(method):
    """Options that make a method's attacker small and its attack short."""
    known = defenses.options(method)
    chosen = {"attacker": "slim", "attacker_width": 4, "steps": min(known.get("steps", 1), 3)}
    return {name: value for name, value in chosen.items() if name in known}


def count(tree):
    """Return the number of entries of all arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


class Tiny(nn.Module):
    rate: float = 0.0
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, keys=None, train=False, axis_name=None):
        x = Conv(4, padding=1, dtype=self.dtype)(x)
        x = nn.relu(BatchNorm(use_running_average=not train, axis_name=axis_name, dtype=self.dtype)(x))
        x = Conv(8, strides=2, padding=1, dtype=self.dtype)(x)
        x = nn.relu(x).mean(axis=(1, 2))
        if train and self.rate:
            x = dropout(keys, x, self.rate)
        return nn.Dense(10, dtype=self.dtype)(x)


def tiny_classifier(rate=0.0, dtype=jnp.float32):
    net = Tiny(rate, dtype)

    def train(variables, x, key, axis_name=None):
        keys = example_keys(key, len(x))
        logits, new = net.apply(variables, x, keys, train=True, axis_name=axis_name, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    return Classifier(net.init, net.apply, train, lambda variables, x: net.apply(variables, x))
