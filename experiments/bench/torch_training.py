"""A method's training step in torch and ours: same network, weights, batch, optimizers and attack.

    torch_training.check(task)                                  # the first losses equal ours
    program = torch_training.program(task, "linear losses")

The steps are in `torch_steps`. This module imports torch: load it through `rivals.package`.
"""

from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn

from bench import training
from bench.benchmark import OPTIMIZERS, Program
from bench.torch_networks import RecurrentOptimizer, build, load, wide_attacker
from bench.torch_steps import RIVALS, Game, first_iterate
from l2ljax import threat
from l2ljax.defenses.classic import STARTS
from l2ljax.models import attackers
from l2ljax.train import TrainState, init_state, make_step
from l2ljax.types import Array, Batch, Classifier, Key, L2LError, Tree, example_keys, fold_in

__all__ = ["FEW", "TOLERANCE", "check", "program", "start_game"]

TOLERANCE = 1e-9
"""The largest relative difference of losses, in float64."""
FEW = 4
"""Images for comparing the losses."""
STEPS = 3
"""Steps for comparing them."""


def program(task: training.Task, which: str) -> Program:
    """Return one of the steps of `RIVALS`, from the initial weights of our step."""
    torch.backends.cudnn.benchmark = True
    classifier, batch = training.network(task)
    defense = training.defense(task, classifier)
    state = init_state(jax.random.key(0), classifier, defense, OPTIMIZERS, batch.x)
    game, step = start_game(task, state, batch), RIVALS[task.method][which]

    def run() -> None:
        step(game, first_iterate(game))
        if game.x.is_cuda:
            torch.cuda.synchronize()

    return run


def start_game(task: training.Task, state: TrainState, batch: Batch) -> Game:
    """Return both players in torch, from our state."""
    options, channels = training.options(task), batch.x.shape[3]
    net = build(task.arch, {"params": state.params.classifier, "batch_stats": state.stats.classifier})
    attacker: nn.Module = nn.Module()
    if "hidden" in options:
        attacker = RecurrentOptimizer(options["hidden"])
    elif "attacker" in options:
        ours: Any = attackers.create(options["attacker"], width=options["attacker_width"])
        attacker = wide_attacker(ours, 2 * channels, channels)
    load(attacker, *jax.device_get((state.params.attacker, state.stats.attacker)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = _images(batch.x).to(device)
    net, attacker = (m.to(x, memory_format=torch.channels_last).train() for m in (net, attacker))
    phi = list(attacker.parameters())
    return Game(
        net, attacker, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True),
        torch.optim.Adam(phi, lr=1e-3, maximize=True, fused=True) if phi else None,
        x, torch.from_numpy(np.asarray(batch.y).astype(np.int64)).to(device), task.eps,
        (x - task.eps).clamp_min(0), (x + task.eps).clamp_max(1), options,
    )  # fmt: skip


def _images(x: Array) -> Tensor:
    """Map [B, H, W, C] to [B, C, H, W] in channels_last, which is the same memory."""
    return torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)


def check(task: training.Task) -> dict[str, list[float]]:
    """Compare the losses of the first `STEPS` steps in torch with ours, from the same weights and the same starts.

    This runs in float64, on `FEW` images: in float32 the signs of PGD make two runs of one program diverge, and a start
    moved by 1e-7 ends after ten steps on resnet20 with every sixth pixel elsewhere. The weights are our initial ones
    plus noise, so that none is 0 or 1. Both sides disable dropout, whose masks would differ, and torch's factor n / (n
    - 1) of BatchNorm's running variances.

    Returns:
      For each of the method's `RIVALS`, the relative differences step by step.

    Raises:
      L2LError: a difference above `TOLERANCE`, or the network or the method has no copy in torch.
    """
    if task.method not in RIVALS:
        raise L2LError(f"no step of {task.method} in torch: --rivals=torch has {', '.join(RIVALS)}")
    if task.dtype != "float32":
        raise L2LError(f"training steps in torch are float32, not {task.dtype}: leave out --rivals=torch")
    gaps: dict[str, list[float]] = {which: [] for which in RIVALS[task.method]}
    with jax.enable_x64(True):
        classifier, batch = training.network(task._replace(batch_size=FEW, dtype="float64"))
        batch, classifier = batch._replace(x=batch.x.astype("float64")), _without_dropout(classifier)
        defense = training.defense(task, classifier)
        state = _moved(init_state(jax.random.key(0), classifier, defense, OPTIMIZERS, batch.x))
        step = make_step(defense, OPTIMIZERS, schedule=task.schedule, devices=jax.local_devices()[:1])
        games = {which: _comparable(start_game(task, state, batch)) for which in RIVALS[task.method]}
        for number in range(1, STEPS + 1):
            start = _first_iterate(task, state, batch)
            state, metrics = step(state, batch)
            ours = float(metrics["loss"])
            for which, game in games.items():
                theirs = float(RIVALS[task.method][which](game, _images(start).to(game.x)))
                gaps[which].append(abs(theirs - ours) / abs(ours))
                if not gaps[which][-1] <= TOLERANCE:
                    raise L2LError(
                        f"step {number} of {f'{task.method} {which}'.strip()} differs: torch's loss is {theirs:.9g} "
                        f"and ours {ours:.9g}; correct torch_steps, or leave out --rivals=torch"
                    )
    return gaps


def _comparable(game: Game) -> Game:
    """Disable dropout, and average the biased variance in running variances."""

    def before(module: nn.Module, inputs: Any) -> None:
        module.before = module.running_var.clone()

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training:
            gathered = module.running_var - (1 - module.momentum) * module.before
            module.running_var = module.running_var - gathered * inputs[0].shape[1] / inputs[0].numel()

    for module in (*game.net.modules(), *game.attacker.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
    return game


def _without_dropout(classifier: Classifier) -> Classifier:
    """Disable dropout: it is the only difference in training of our networks without BatchNorm."""

    def train(variables: Tree, x: Array, key: Key, axis_name: str | None = None) -> tuple[Array, Tree]:
        if variables["batch_stats"]:
            return classifier.train(variables, x, key, axis_name)
        return classifier.logits(variables, x), {}

    return classifier._replace(train=train)


def _moved(state: TrainState) -> TrainState:
    """Return the state in float64, with noise on weights and statistics, and with small logits.

    Where a softmax saturates, the gradient of the KL divergence, which the attack of TRADES ascends, is rounding noise,
    whose signs no two programs agree on.
    """
    noise = np.random.default_rng(0)
    state = jax.tree.map(lambda a: a.astype("float64") if a.dtype == "float32" else a, state)
    params, stats = jax.tree.map(lambda a: a + 0.05 * noise.normal(size=a.shape), (state.params, state.stats))
    scale = lambda path, a: 0.1 * a if path[0].key.startswith("Dense") else a
    small = jax.tree_util.tree_map_with_path(scale, params.classifier)
    return state._replace(params=params._replace(classifier=small), stats=stats)


def _first_iterate(task: training.Task, state: TrainState, batch: Batch) -> Array:
    """Return the first iterate of the attack in our next step."""
    keys = fold_in(example_keys(jax.random.fold_in(state.key, state.step), len(batch.x)), 0)
    return STARTS[training.options(task).get("start", "clean")](threat.linf(task.eps), keys, batch.x)
