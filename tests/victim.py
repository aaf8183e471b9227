"""What the tests of attacks attack: a small network of two layers, and six images on which it is right."""

import jax
import jax.numpy as jnp
import numpy as np

from l2ljax import threat

_RNG = np.random.RandomState(0)
WEIGHTS = {
    "w1": _RNG.normal(0, 0.5, (64, 16)).astype(np.float32),
    "w2": _RNG.normal(0, 1.0, (16, 5)).astype(np.float32),
}
X = _RNG.uniform(-0.2, 1.2, (6, 8, 8, 1)).clip(0, 1).astype(np.float32)  # with black and white pixels
KEY = jax.random.key(0)
LINF, L2 = threat.linf(0.1), threat.l2(0.8)

TRACES = []
"""The shapes with which `network` was traced or called."""


def network(weights, x):
    TRACES.append(x.shape)
    return jnp.tanh((x - 0.5).reshape(len(x), -1) @ weights["w1"]) @ weights["w2"]


LOGITS = jax.tree_util.Partial(network, WEIGHTS)
# So the network is right on all clean images.
Y = (np.tanh((X - 0.5).reshape(6, -1) @ WEIGHTS["w1"]) @ WEIGHTS["w2"]).argmax(axis=1)
