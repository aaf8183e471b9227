"""The limiting cycle, and a learned attacker that breaks it: `python experiments/cycle.py`.

min over x, max over y of x y (Learning to Defend by Learning to Attack, appendix D): if both players step along their
gradients, they circle the equilibrium (0, 0), moving out by a factor sqrt(1 + step^2) each step. In L2L, an attacker
makes y = phi x from the gradient x, and phi ascends; x, for which y is a constant, then shrinks by 1 - step phi each
step. Both games use the library's own training step.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import stop_gradient

from l2ljax.files import check_writable, write_json
from l2ljax.runtime.flags import launch
from l2ljax.runtime.provenance import provenance
from l2ljax.train import TrainState, make_step
from l2ljax.types import Array, Batch, Defense, Players
from l2ljax.values import Range
from papers.figures import paths_in_the_plane


@dataclasses.dataclass(frozen=True)
class Flags:
    """Lengths and the output file."""

    step: Annotated[float, Range(1e-6, 1)] = 1e-2
    """1e-4 in the paper, with the same picture."""
    turns: Annotated[float, Range(0.2, 1000)] = 2.0
    """Turns of the plain game's circle."""
    out: Path = Path("runs/cycle.json")
    """The final positions, a kept result if they are in experiments/results; the picture goes next to them."""


def plain(params: Players, *_: Any) -> tuple[Array, Any]:
    """Return x y, with x a variable of the one player and y of the other."""
    value = params.classifier * params.attacker
    return value, (Players((), ()), {"x": params.classifier, "y": params.attacker})


def learned(params: Players, *_: Any) -> tuple[Array, Any]:
    """Return x y at y = phi g with g = df/dy = x a constant feature, as in all of L2L's attackers."""
    x, g = params.classifier, stop_gradient(params.classifier)
    y = params.attacker * g
    descended, ascended = x * stop_gradient(y), g * y
    return descended + ascended - stop_gradient(ascended), (Players((), ()), {"x": x, "y": y})


def play(objective: Any, attacker: float, *, step: float, steps: int) -> np.ndarray:
    """Return the players' positions [steps + 1, 2], from x = 1 on."""
    optimizer = optax.sgd(step)
    train_step = make_step(Defense(None, objective, None), Players(optimizer, optimizer), devices=jax.devices()[:1])  # type: ignore[arg-type]
    params = Players(jnp.float32(1), jnp.float32(attacker))
    state = TrainState(jnp.int32(0), params, Players((), ()), Players(*map(optimizer.init, params)), jax.random.key(0))
    batch = Batch(jnp.zeros((1, 1, 1, 1)), jnp.zeros(1, jnp.int32))
    rows = []
    for _ in range(steps + 1):  # a step returns the positions before it
        state, metrics = train_step(state, batch)
        rows.append(metrics)
    return np.array([(row["x"], row["y"]) for row in jax.device_get(rows)])


def main(flags: Flags) -> None:
    """Play both games, draw them, print their ends."""
    check_writable(flags.out)
    steps = round(flags.turns * 2 * np.pi / flags.step)
    games = {"gradient steps": plain, "learned attacker": learned}
    paths = {name: play(game, 0.0, step=flags.step, steps=steps) for name, game in games.items()}
    paths_in_the_plane(flags.out.with_suffix(".png"), paths)
    distances = {name: float(np.hypot(*path[-1])) for name, path in paths.items()}
    for name, distance in distances.items():
        print(f"{name}: after {steps} steps at distance {distance:.4f} from the equilibrium")
    write_json(flags.out, {**provenance(), "step": flags.step, "steps": steps, "distances": distances})


if __name__ == "__main__":
    launch(main, Flags, __doc__)
