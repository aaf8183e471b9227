"""The loop of all evaluations, on the host: attacks in turn, each on the examples that no earlier one fooled.

    job = job_of(logits_fn, (images, labels), batch_size=250)
    clean = clean_logits(job, key).argmax(axis=1) == labels
    attack_in_turn(job, [Turn("pgd20", s, key) for s in attacks.solver.solvers(attack)], state)

The host stops an attack in pieces (see `attacks.solver`), like "pgd100+first", every ten steps and drops the finished
examples: on a model that is 50 % robust, PGD-100 takes a little more than half of the passes.
"""

import functools
import inspect
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from l2ljax import devices
from l2ljax.attacks.entrance import check_model, check_output, reach
from l2ljax.attacks.solver import Solver, as_tree, unjitted
from l2ljax.data import Split, pixels
from l2ljax.data.arrays import check_examples, native
from l2ljax.threat import Ball
from l2ljax.types import Array, Attack, Key, L2LError, Tree, one_key
from l2ljax.values import check

__all__ = [
    "ROUND", "STANDS", "Job", "Progress", "Turn", "attack_in_turn", "check_logits", "clean_logits",
    "examples_of", "job_of", "named_attacks", "over",
]  # fmt: skip

ROUND = 10
"""Number of steps between dropping a solver's finished examples."""
STANDS = np.iinfo(np.int32).max


class Job(NamedTuple):
    """A model and N examples."""

    logits_fn: Partial
    """Replicated on all local devices; a stochastic model is called as logits_fn(x, keys [B])."""
    images: Any
    """[N, H, W, C], uint8 or floats in [0, 1]."""
    labels: np.ndarray
    batch_size: int
    unit: int
    """Copies fill incomplete batches to a multiple of this."""
    stochastic: bool
    ball: Ball | None
    """The ball that attacks must not leave, if known."""

    def batch(self, key: Key, rows: np.ndarray) -> tuple[Key, Array, Array]:
        """Return each example's key, image and label, for the examples with the numbers `rows`."""
        x = pixels(self.images[rows])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(one_key(key), jnp.asarray(rows))
        return devices.shard((keys, x, self.labels[rows]))


class Turn(NamedTuple):
    """A solver, its attack's name, and the key for its draws."""

    name: str
    solver: Solver
    key: Key


class Progress(NamedTuple):
    """The progress of the turns. The loop writes into these arrays."""

    x_adv: np.ndarray | None
    """[N, H, W, C]: an adversarial image if an attack succeeded, else the clean one; None keeps none."""
    fooled_by: np.ndarray
    """[N]: the number of the turn that fooled an example, `STANDS` if none did, -1 to skip it."""
    at: np.ndarray
    """[2]: the current turn, and its next example."""
    spent: np.ndarray
    """[turns, 2]: seconds in its programs, without compilation; steps, summed over the examples that needed them."""


def examples_of(split: Any) -> Split:
    """Return images, in half precision as float32, and labels as an array.

    Raises:
      L2LError: no pair, images that are no array, what `check_examples` refuses, no examples.
    """
    if not isinstance(split, tuple | list) or len(split) != 2:
        kind = f"{len(split)} values" if isinstance(split, tuple | list) else f"a {type(split).__name__}"
        raise L2LError(f"the examples are {kind}: give (images, labels)")
    images, labels = split
    if not hasattr(images, "dtype"):
        raise L2LError(f"images are a {type(images).__name__}: give an array, uint8 or floats in [0, 1]")
    if not isinstance(images.dtype, np.dtype):  # a PyTorch tensor
        images = np.asarray(images)
    try:
        labels = np.asarray(labels)
    except ValueError as error:  # lists of several lengths
        raise L2LError(f"labels are a {type(labels).__name__} of several lengths: give integers [N]") from error
    if jnp.issubdtype(images.dtype, jnp.floating):  # NumPy does not count bfloat16
        images = pixels(images)
    images, labels = native(images), native(labels)
    check_examples(images, labels)
    if not len(labels):
        raise L2LError("there are no examples to evaluate on: give one or more, --eval-size of 1 or more")
    return Split(images, labels)


def job_of(
    logits_fn: Callable[..., Array], split: Split | tuple[Any, Any], *, batch_size: int, sizes: int = 1,
    stochastic: bool = False, ball: Ball | None = None,
) -> Job:  # fmt: skip
    """Return the job on `examples_of(split)`, in batches of at most `sizes` sizes, split over all local devices."""
    check_model(logits_fn)
    if stochastic and not _takes_keys(logits_fn):
        call = "a model with noise of its own is called as logits_fn(x, keys [B])"
        raise L2LError(f"{call}, which this one refuses: give one that draws by keys, or take it as one without noise")
    images, labels = examples_of(split)
    size = devices.round_up(min(batch_size, len(labels)))
    unit = devices.round_up(max(size // sizes, 1))
    return Job(devices.replicate(as_tree(logits_fn)), images, labels, size, unit, stochastic, ball)


def check_logits(logits: Array | np.ndarray, y: Array | np.ndarray) -> None:
    """Check that a model returned logits [B, K] for labels y.

    Raises:
      L2LError: another shape, labels >= K, NaN or infinity, or rows that are probabilities.
    """
    logits, y = np.asarray(logits), np.asarray(y)
    check_output(logits, len(y), reach(y))
    if not np.isfinite(logits).all():
        raise L2LError(
            "the model returned NaN logits or infinite ones: its training diverged, or its input is wrong; "
            "give a class that is ruled out a finite logit, like -1e9"
        )
    near = max(1e-4, float(jnp.finfo(logits.dtype).eps))
    if (logits >= -1e-6).all() and np.allclose(logits.sum(axis=1, dtype=np.float32), 1, atol=near):
        raise L2LError("the model returns probabilities: give its logits (before the softmax), or attacks fail")


def named_attacks(attacks: Any, num_classes: int | None = None) -> list[tuple[str, Attack]]:
    """Return (name, attack) pairs of a mapping or, if `num_classes` is given, of a function of that number.

    Raises:
      L2LError: anything else, like an attack without a name.
    """
    example = "give {'pgd20': attacks.create('pgd20', ball)}"
    if num_classes is not None and callable(attacks):
        try:
            inspect.signature(attacks).bind(num_classes)
        except TypeError as error:
            raise L2LError(f"the attacks are a function of more than the number of classes: {example}") from error
        attacks = attacks(num_classes)
    elif isinstance(attacks, Mapping):
        attacks = attacks.items()
    else:
        raise L2LError(f"the attacks are a {type(attacks).__name__}: {example}")
    return [(name, unjitted(check(Attack, attack, f"the attack {name}"))) for name, attack in attacks]


def over(job: Job, function: Callable[..., Tree], key: Key, **options: Any) -> Tree:
    """Return function(logits_fn, keys, x, y, **options), arrays [B, ...], for all examples: [N, ...]."""
    n, size = len(job.labels), job.batch_size
    parts = [_filled(rows, job.unit, size) for rows in np.split(np.arange(n), range(size, n, size))]
    results = [_run(job, np.zeros(2), function, *job.batch(key, rows), **options) for rows in parts]
    return jax.tree.map(lambda *a: np.concatenate(a)[:n], *results)


def clean_logits(job: Job, key: Key) -> np.ndarray:
    """Return the logits [N, K] of the clean images; raise an L2LError for invalid ones."""
    logits, _ = over(job, _logits, key, stochastic=job.stochastic)
    check_logits(logits, job.labels)
    return logits.astype(np.promote_types(logits.dtype, np.float32))  # which a file can hold


def attack_in_turn(job: Job, todo: Sequence[Turn], state: Progress, tick: Callable[[], None] = lambda: None) -> None:
    """Continue from `state` to the end; call `tick` after each batch and each turn.

    Raises:
      L2LError: an attack that leaves [0, 1] or the job's ball, or returns NaN; logits that are not finite.
    """
    numbers = np.arange(len(job.labels))
    for index in range(state.at[0], len(todo)):
        while len(standing := numbers[(state.fooled_by == STANDS) & (numbers >= state.at[1])]):
            rows = standing[: job.batch_size]
            x_adv, fooled = _attack(job, todo[index], rows, state.spent[index])
            state.fooled_by[rows[fooled]] = index
            if state.x_adv is not None:
                state.x_adv[rows[fooled]] = np.asarray(x_adv)[: len(rows)][fooled]
            state.at[1] = rows[-1] + 1
            tick()
        state.at[:] = index + 1, 0
        tick()


def _attack(job: Job, turn: Turn, rows: np.ndarray, spent: np.ndarray) -> tuple[Array, np.ndarray]:
    """Attack one batch; return its images, with copies at the end, and which of `rows` fool the model."""
    count, rows = len(rows), _filled(rows, job.unit, job.batch_size)
    keys, x, y = part = job.batch(turn.key, rows)
    carry = _run(job, spent, turn.solver.init, *part)
    x_adv, at, standing = np.zeros(x.shape, x.dtype), np.arange(len(rows)), count  # at: positions in the batch
    for begun in range(0, turn.solver.steps, ROUND):
        left = np.flatnonzero(~np.asarray(carry.done)[:standing])
        if not len(left):
            break
        packed = _filled(left, devices.round_up(_unit(len(left), len(rows))), len(rows))
        if len(packed) < len(at) and _per_example(job, turn, carry, part):
            whole = jax.device_get(carry)
            x_adv[at[:standing]] = whole.x[:standing]
            carry = devices.shard(jax.tree.map(operator.itemgetter(packed), whole))
            at, standing, part = at[packed], len(left), job.batch(turn.key, rows[at[packed]])
        n = min(ROUND, turn.solver.steps - begun)
        carry = _run(job, spent, turn.solver.advance, *part, carry, n=n)
        spent[1] += n * len(left)
    reached = carry.x
    if len(at) < len(rows):
        x_adv[at[:standing]] = np.asarray(carry.x)[:standing]
        reached = devices.shard(x_adv)
    logits, valid = map(np.asarray, _run(job, spent, _logits, keys, reached, y, stochastic=job.stochastic))
    if not valid[:count].all():
        raise L2LError(
            f"{turn.name} left [0, 1] or returned NaN in the batch from example {rows[0]} on: "
            "check the attack's updates for NaN, and its projection"
        )
    if job.ball is not None:
        length = np.asarray(job.ball.norm(reached - x))[:count].max()
        if length > 1.001 * job.ball.eps + 1e-6:  # beyond rounding
            ball = f"the {job.ball.name} ball of eps = {job.ball.eps:.6g}"
            raise L2LError(f"{turn.name} went {length:.6g} away, out of {ball}: end it with ball.project(x_adv, x)")
    if not np.isfinite(logits[:count]).all():
        raise L2LError(f"{turn.name} reached images with NaN logits or infinite ones: find out where the model breaks")
    return reached, (logits.argmax(axis=1) != job.labels[rows])[:count]


def _per_example(job: Job, turn: Turn, carry: Tree, part: tuple[Key, Array, Array]) -> bool:
    """Return whether the state is an entry per example, in all its arrays, so that examples can be dropped."""
    one = jax.eval_shape(turn.solver.init, job.logits_fn, *(a[:1] for a in part))
    sizes = [(a.shape[:1], b.shape[:1]) for a, b in zip(*map(jax.tree.leaves, (one, carry)), strict=True)]
    return all(size == ((1,), (len(part[1]),)) for size in sizes)


def _logits(logits_fn: Callable[..., Array], keys: Key, x: Array, y: Array, *, stochastic: bool) -> tuple[Array, Array]:
    """Return the logits [B, K], and whether each image is valid [B]."""
    valid = ((x >= 0) & (x <= 1)).all(axis=range(1, x.ndim))  # NaN compares as false
    return check_output(logits_fn(x, keys) if stochastic else logits_fn(x), len(x)), valid


def _run(job: Job, spent: np.ndarray, function: Any, *batch: Tree, **options: Any) -> Any:
    """Run function(logits_fn, *batch, **options) on all devices; add its seconds, without compilation, to `spent`."""
    args = (devices.replicate(as_tree(function)), job.logits_fn, *batch)
    leaves, treedef = jax.tree.flatten(args)
    program = _compiled(treedef, tuple(map(_placed, leaves)), tuple(options.items()))
    began = time.perf_counter()
    result = jax.block_until_ready(program(*args))
    spent[0] += time.perf_counter() - began
    return result


def _takes_keys(logits_fn: Callable[..., Array]) -> bool:
    """Return whether a model can be called with images and keys."""
    try:
        inspect.signature(logits_fn).bind(None, None)
    except TypeError:
        return False
    return True


def _placed(array: Array) -> jax.ShapeDtypeStruct:
    """Return the array's shape, type and placement, to compile for."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


@functools.lru_cache(maxsize=128)
def _compiled(treedef: Any, shapes: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    program = devices.on_each(lambda function, *args: function(*args, **dict(options)), whole=2)
    return jax.jit(program).lower(*jax.tree.unflatten(treedef, shapes)).compile()


def _unit(left: int, size: int) -> int:
    """Return an eighth of a batch, halved up to twice for as few examples: a program is compiled for each size."""
    return next((size // n for n in (32, 16) if left <= size // n), max(size // 8, 1))


def _filled(rows: np.ndarray, unit: int, most: int) -> np.ndarray:
    """Return the numbers, with copies at the end that make them a multiple of `unit`, or `most`."""
    return np.resize(rows, min(-(-len(rows) // unit) * unit, most))
