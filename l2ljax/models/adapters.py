"""Classifiers from other networks: linen and nnx modules, and plain functions.

    clf = models.from_linen(MyResNet(num_classes=10))             # its __call__(self, x, train) or the like
    clf = models.from_linen(MyResNet(num_classes=10), variables=trained)
    clf = models.from_nnx(MyNet(rngs=nnx.Rngs(0)))
    clf = models.from_functions(init, logits, train)
    variables = clf.init(jax.random.key(0), x)

Every defense and `train.make_step` take them. Attacks take any function of images, so a model can be attacked as it is,
with its weights as arguments of the compiled program: `jax.jit(attack)(model, key, x, y)` for an nnx module in
evaluation mode, `eqx.filter_jit(attack)` for an Equinox module that maps batches. A plain function is static:
`jax.jit(attack, static_argnums=0)`.

`nn.Dropout` and `nnx.Dropout` draw a mask for each example from its own key, so that it does not depend on the number
of devices (but layers repeated by `nn.scan` share theirs). Other random layers draw for a device's batch, from the key
of its first example.
"""

import contextlib
import functools
import hashlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from l2ljax.models import initial
from l2ljax.models.convolution import stock_convolution
from l2ljax.types import Array, Classifier, Key, L2LError, Tree, as_key, example_keys, fold_in, is_key, one_line

__all__ = ["MODES", "as_classifier", "fingerprint", "from_functions", "from_linen", "from_nnx", "program"]

MODES = {
    "train": True, "training": True, "is_training": True, "is_train": True, "deterministic": False, "inference": False,
    "use_running_average": False,
}  # fmt: skip
"""The arguments of `__call__` that give a linen network's mode -> their values in training."""
_VARIADIC = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def from_functions(
    init: Callable[[Key, Array], Tree], logits: Callable[[Tree, Array], Array],
    train: Callable[..., tuple[Array, Tree]] | None = None, *, features: Callable[[Tree, Array], Array] | None = None,
) -> Classifier:  # fmt: skip
    """Make a classifier from functions of {"params": tree, "batch_stats": tree}, like those of an Equinox module:

        params, static = eqx.partition(net, eqx.is_inexact_array)
        clf = from_functions(
            lambda key, x: {"params": params},
            lambda variables, x: jax.vmap(eqx.combine(variables["params"], static))(x),
        )

    Args:
      init: (key, x [B, H, W, C]) -> variables, whose batch_stats (floats) may be missing.
      logits: (variables, x) -> logits [B, K] in evaluation mode.
      train: (variables, x, key, axis_name=None) -> (logits, batch_stats) in training mode, with `key` one key or one
        per example [B]; by default as in evaluation.
      features: (variables, x) -> penultimate features [B, D] in evaluation mode, compared by ait and ait_l2l.

    Raises:
      L2LError: when called, the network returns anything but [B, K], or a defense needs missing `features`.
    """

    def own(key: Key, x: Array) -> Tree:
        variables = init(key, x)
        if not isinstance(variables, Mapping) or ("params" not in variables and variables.keys() - {"batch_stats"}):
            kind = type(variables).__name__
            raise L2LError(f"init returned a {kind} without params: give {{'params': tree}}")
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get("params")):
            if not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating):
                where = jax.tree_util.keystr(path)
                raise L2LError(f"the parameter {where} is no array of floats: keep it in the function, not in params")
        whole = {"params": {}, "batch_stats": {}, **variables}
        return jax.tree.map(jnp.array, whole)  # copies, as training donates its state

    def evaluate(variables: Tree, x: Array) -> Array:
        return _checked(logits(variables, x))

    def fit(variables: Tree, x: Array, key: Key, axis_name: str | None = None) -> tuple[Array, Tree]:
        if train is None:
            return evaluate(variables, x), variables["batch_stats"]
        result = train(variables, x, key, axis_name)
        if not isinstance(result, tuple) or len(result) != 2:
            raise L2LError("train returned no pair: give (logits [B, K], batch_stats), {} without any")
        return _checked(result[0]), result[1]

    return Classifier(own, evaluate, fit, features or _no_features)


def as_classifier(network: Classifier | nn.Module | nnx.Module) -> Classifier:
    """Return the network as a `Classifier`; an L2LError where it is none."""
    if isinstance(network, nnx.Module):
        return from_nnx(network)
    if isinstance(network, nn.Module):
        return from_linen(network)
    if isinstance(network, type):
        raise L2LError(f"{network.__name__} is a class: give a network, like {network.__name__}(...)")
    if not isinstance(network, Classifier):
        raise L2LError(f"{type(network).__name__} is no classifier: make it one with models.from_functions")
    return network


def from_linen(
    module: nn.Module, *, variables: Mapping[str, Any] | None = None, train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None, rngs: Sequence[str] = ("dropout",),
    features: Callable[[Tree, Array], Array] | None = None,
) -> Classifier:  # fmt: skip
    """Make a classifier from a linen network, with its BatchNorm and dropout.

    BatchNorm reduces its statistics over all devices that train, whatever axis the network itself names.

    Args:
      module: maps x [B, H, W, C] to logits [B, K].
      variables: {"params", "batch_stats"} to start at, of a network that is trained; by default `init` draws them.
      train_kwargs: the keyword arguments of `__call__` in training. By default (without `eval_kwargs`) those of `MODES`
        that it has.
      eval_kwargs: those in evaluation.
      rngs: the names of its random streams.
      features: (variables, x) -> penultimate features [B, D], for instance from a method of the module:
        `lambda variables, x: module.apply(variables, x, method="embed")`.

    Raises:
      L2LError: in `init`, a network with batch statistics and no mode, or with collections besides params and
        batch_stats; variables of another network.
    """
    name = type(module).__name__
    if train_kwargs is None and eval_kwargs is None:
        known = inspect.signature(module.__call__).parameters
        train_kwargs = {mode: value for mode, value in MODES.items() if mode in known}
        eval_kwargs = {mode: not value for mode, value in train_kwargs.items()}
        needed = [p.name for p in list(known.values())[1:] if p.default is p.empty and p.kind not in _VARIADIC]
        if unknown := sorted(set(needed) - set(train_kwargs)):
            raise L2LError(f"{name}.__call__ needs {unknown[0]}: give train_kwargs and eval_kwargs, see from_linen")
    training, evaluation = dict(train_kwargs or {}), dict(eval_kwargs or {})

    def streams(key: Key) -> dict[str, Key]:
        return {stream: jax.random.fold_in(key, i) for i, stream in enumerate(rngs)}

    @initial.compiled
    def init(key: Key, x: Array) -> Tree:
        with _naming_streams(name):
            variables = module.init({**streams(key), "params": key}, x[:1], **evaluation)
        if others := variables.keys() - {"params", "batch_stats"}:
            raise L2LError(f"{name} has the collections {', '.join(sorted(others))}: use from_functions")
        if "batch_stats" in variables and training == evaluation:
            modes = ", ".join(MODES)
            ways = "give train_kwargs and eval_kwargs, or use from_functions"
            raise L2LError(f"{name} has batch statistics, but its __call__ has none of {modes}: {ways}")
        return variables

    def train(variables: Tree, x: Array, key: Key, axis_name: str | None) -> tuple[Array, Tree]:
        drop = _dropper(key, x)

        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if isinstance(context.module, nn.BatchNorm):
                object.__setattr__(context.module, "axis_name", axis_name)  # modules are frozen
            if isinstance(context.module, nn.Dropout) and context.method_name == "__call__" and args:
                return drop(lambda x, **own_key: call(x, *args[1:2], **{**kwargs, **own_key}), args[0], "rng")
            return call(*args, **kwargs)

        with _naming_streams(name), nn.intercept_methods(intercept):
            logits, updated = module.apply(variables, x, **training, rngs=streams(_one(key)), mutable=["batch_stats"])
        return logits, updated.get("batch_stats", {})

    def given(key: Key, x: Array) -> Tree:
        own, at = jax.eval_shape(init, key, x), jax.tree_util.keystr
        leaves = {at(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
        shapes = {at(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(own)}
        unlike = [p for p in {**shapes, **leaves} if p not in leaves or jnp.shape(leaves[p]) != shapes.get(p)]
        if unlike:
            fix = "give {'params': ..., 'batch_stats': ...} as its init returns them"
            raise L2LError(f"the variables are not {name}'s on images {list(x.shape[1:])}, see {unlike[0]}: {fix}")
        return jax.tree_util.tree_map_with_path(lambda path, _: leaves[at(path)], own)

    logits: Any = functools.partial(module.apply, **evaluation)
    return from_functions(init if variables is None else given, logits, train, features=features)


@contextlib.contextmanager
def _naming_streams(network: str) -> Iterator[None]:
    """Say what to do where a linen network draws from a random stream that it was not given."""
    try:
        yield
    except flax.errors.InvalidRngError as error:
        ways = "name it in from_linen(rngs=...), or the mode in train_kwargs and eval_kwargs"
        raise L2LError(f"{network} draws from a stream that it lacks ({one_line(error)}): {ways}") from error


def from_nnx(model: nnx.Module, *, features: Callable[[Any, Array], Array] | None = None) -> Classifier:
    """Make a classifier from an nnx network, with its BatchNorm and dropout; `model` itself is unchanged.

    The classifier starts at the model's weights: `init` ignores its key. All state besides parameters and random
    streams is batch_stats, reduced as in `from_linen`.

    Args:
      model: maps x [B, H, W, C] to logits [B, K], in the modes of `model.train()` and `model.eval()`.
      features: (model, x) -> penultimate features [B, D], like a method of its class.
    """

    def split(network: nnx.Module) -> tuple[Any, Tree, Tree]:
        parts: Any = nnx.split(network, nnx.Param, nnx.RngState, ...)
        graph, params, streams, stats = parts
        return graph, streams, {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}

    graph, streams, first = split(model)
    streams = jax.tree.map(lambda a: a if is_key(a) else jnp.zeros_like(a), streams)  # counts of earlier draws

    def build(variables: Tree, streams: Tree) -> Any:
        return nnx.merge(graph, variables["params"], streams, variables["batch_stats"])

    def evaluated(variables: Tree) -> Any:
        network = build(variables, streams)
        network.eval()
        return network

    def train(variables: Tree, x: Array, key: Key, axis_name: str | None) -> tuple[Array, Tree]:
        leaves, tree = jax.tree.flatten(streams)
        keys = [jax.random.fold_in(_one(key), i) for i in range(len(leaves))]
        drawn = [jax.random.split(k, a.shape) if is_key(a) else a for k, a in zip(keys, leaves, strict=True)]
        network = build(variables, jax.tree.unflatten(tree, drawn))
        network.train()
        drop = _dropper(key, x)

        class Dropout(nnx.Dropout):
            def __call__(self, inputs: Array, **keywords: Any) -> Array:
                call = super().__call__
                return drop(lambda x, **own_key: call(x, **{**keywords, **own_key}), inputs, "rngs")

        for _, module in nnx.iter_modules(network):
            if type(module) is nnx.Dropout:
                object.__setattr__(module, "__class__", Dropout)
        network.set_attributes(nnx.BatchNorm, axis_name=axis_name, raise_if_not_found=False)
        logits = network(x)
        return logits, split(network)[-1]["batch_stats"]

    return from_functions(
        lambda key, x: first,
        lambda variables, x: evaluated(variables)(x),
        train,
        features=features and (lambda variables, x: features(evaluated(variables), x)),
    )


def fingerprint(classifier: Classifier, x: Array) -> tuple[str, str]:
    """Return JAX's version and a checksum of the network's training and evaluation on x [B, H, W, C].

    The checksum is of the programs and their constants, not of the variables; another version writes them otherwise.
    """
    with stock_convolution():
        key = jax.random.key(0)
        variables = jax.eval_shape(classifier.init, key, x)
        both = lambda variables, x, key: (classifier.logits(variables, x), classifier.train(variables, x, key))
        return program(both, variables, x, key)


def program(function: Callable[..., Tree], *args: Tree) -> tuple[str, str]:
    """Return JAX's version and a checksum of a function's program and its constants, not of the arguments' values."""
    traced = jax.make_jaxpr(function)(*args)
    digest = hashlib.sha256(re.sub("0x[0-9a-f]+", "", str(traced)).encode())  # without addresses of Python's functions
    for constant in traced.consts:
        digest.update(np.asarray(jax.random.key_data(constant) if is_key(constant) else constant).tobytes())
    return jax.__version__, digest.hexdigest()


def _dropper(key: Key, x: Array) -> Callable[[Callable[..., Array], Array, str], Array]:
    """Return a function that calls dropout layers in turn, each example with its own key as argument `name`.

    Activations that are not [B, ...] are dropped with the layer's own key.
    """
    keys, number = example_keys(key, len(x)), itertools.count()

    def drop(layer: Callable[..., Array], inputs: Array, name: str) -> Array:
        own = fold_in(keys, next(number))
        if len(inputs) != len(own):
            return layer(inputs)
        return jax.vmap(lambda row, key: layer(row[None], **{name: key})[0])(inputs, own)

    return drop


def _one(key: Key) -> Key:
    """Return one key for a batch: `key` itself, or the first of keys [B]."""
    key = as_key(key)
    return key if key.ndim == 0 else key[0]


def _checked(logits: Any) -> Array:
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2:
        result = f"a {type(logits).__name__}" if shape is None else list(shape)
        raise L2LError(f"the network returns {result}: wrap it in one that returns logits [B, K] alone")
    return logits


def _no_features(variables: Tree, x: Array) -> Array:
    raise L2LError("this classifier has no features for ait and ait_l2l to compare: make it with features=...")
