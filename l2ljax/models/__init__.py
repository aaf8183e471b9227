"""Classifiers by name, as pure functions of their variables.

    clf = models.create("resnet20", num_classes=10)
    variables = clf.init(jax.random.key(0), x)                    # {"params": ..., "batch_stats": ...}
    logits = clf.logits(variables, x)                             # evaluation mode
    logits, batch_stats = clf.train(variables, x, key)            # training mode

Images [B, H, W, C] are in [0, 1]; a network's normalization is inside it. `CLASSIFIERS` is the table of names.
`from_linen`, `from_nnx` and `from_functions` make a `Classifier` of your own network, `from_torch_state` variables from
a PyTorch checkpoint. `pretrained` loads a robust network that comes with the library.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from l2ljax import threat
from l2ljax.models import cnn, initial, resnet, shipped
from l2ljax.models.adapters import as_classifier, fingerprint, from_functions, from_linen, from_nnx
from l2ljax.models.shipped import PRETRAINED
from l2ljax.models.torch_state import from_torch_state
from l2ljax.types import Array, Classifier, Key, L2LError, Tree, example_keys
from l2ljax.values import Count, checked

__all__ = [
    "CLASSIFIERS", "PRETRAINED", "Classifier", "Pretrained", "as_classifier", "create", "fingerprint", "from_functions",
    "from_linen", "from_nnx", "from_torch_state", "pretrained",
]  # fmt: skip
__dir__ = lambda: __all__

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": cnn.DigitsCNN,
    "small_cnn": cnn.SmallCNN,
    "lenet5": cnn.LeNet5,
    "vgg16": cnn.VGG16,
    **resnet.RESNETS,
}
"""Name -> linen module from (num_classes, dtype, train, axis_name): (x, keys) -> (logits, features)."""


@checked
def create(name: str, *, num_classes: Count = 10, dtype: Any = jnp.float32, remat: bool = False) -> Classifier:
    """Build a classifier.

    Args:
      name: one of `CLASSIFIERS`.
      num_classes: K.
      dtype: of the computation; parameters and statistics are always float32, logits float32 or wider.
      remat: keep only what passes between a residual network's blocks, and recompute the rest in the backward pass: the
        same gradients and variables with less memory, for about a forward pass more. XLA:CPU recomputes too early to
        save memory: there it only costs time.

    Raises:
      L2LError: an unknown name, `remat` of a network without blocks, and, when called, images of an unsupported shape.
    """
    if name not in CLASSIFIERS:
        raise L2LError(f"unknown classifier {name!r}: choose one of {', '.join(CLASSIFIERS)}")
    module = CLASSIFIERS[name](num_classes=num_classes, dtype=dtype)
    if remat:
        if not isinstance(module, resnet.ResNet):
            raise L2LError(f"{name} has no residual blocks: leave out --remat")
        module = module.clone(remat=True)
    wide, expected = jnp.promote_types(dtype, jnp.float32), module.image_shape  # (H, W, C), None for any size

    def valid(x: Array) -> Array:
        if x.ndim != 4 or any(n not in (None, m) for n, m in zip(expected, x.shape[1:], strict=True)):
            shape = ", ".join(str(n or letter) for n, letter in zip(expected, "HWC", strict=True))
            raise L2LError(f"{name} takes images [B, {shape}], got {list(x.shape)}")
        return x

    initialize = initial.compiled(lambda key, x: {"batch_stats": {}, **module.init(key, x)})

    def evaluate(variables: Tree, x: Array) -> tuple[Array, Array]:
        logits, features = cast("tuple[Array, Array]", module.apply(variables, valid(x)))
        return logits.astype(wide), features.astype(wide)

    def train(variables: Tree, x: Array, key: Key, axis_name: str | None = None) -> tuple[Array, Tree]:
        network, keys = module.clone(train=True, axis_name=axis_name), example_keys(key, len(valid(x)))
        (logits, _), updated = network.apply(variables, x, keys, mutable=["batch_stats"])
        return logits.astype(wide), updated.get("batch_stats", {})

    return Classifier(
        init=lambda key, x: initialize(key, valid(x)[:1]),
        logits=lambda variables, x: evaluate(variables, x)[0],
        train=train,
        features=lambda variables, x: evaluate(variables, x)[1],
    )


class Pretrained(NamedTuple):
    """A robust classifier that comes with the library."""

    logits_fn: jax.tree_util.Partial
    """Images [B, H, W, C] in [0, 1] -> logits [B, K], in evaluation mode; its weights are a pytree."""
    classifier: Classifier
    variables: dict[str, Any]
    """{"params", "batch_stats"}."""
    ball: threat.Ball
    """The threat that it was trained in."""
    card: dict[str, Any]
    """The settings and the command that trained it, and under "judged" the accuracies (fractions) and on how many
    images."""

    def __repr__(self) -> str:
        """Return network, training and threat, without the weights."""
        about = (self.card[name] for name in ("arch", "dataset", "method", "norm", "eps"))
        return "Pretrained({} on {}, {}, {} eps {})".format(*about)


def pretrained(name: str) -> Pretrained:
    """Return one of the models that come with the library.

    `l2ljax.load("pretrained:NAME")` returns it with the attacker that learned with it.

    Args:
      name: one of `PRETRAINED`.

    Raises:
      L2LError: an unknown name, or a damaged file.
    """
    card = shipped.card(name := name.removeprefix(shipped.PREFIX))
    classifier = create(card["arch"], num_classes=card["num_classes"], dtype=jnp.dtype(card["dtype"]))
    like = jax.eval_shape(classifier.init, jax.random.key(0), jnp.zeros((1, *card["image_shape"])))
    params, batch_stats = shipped.restore(name, "classifier", (like["params"], like["batch_stats"]))
    variables = {"params": params, "batch_stats": batch_stats}
    ball = threat.create(card["norm"], card["eps"])
    return Pretrained(jax.tree_util.Partial(classifier.logits, variables), classifier, variables, ball, card)
