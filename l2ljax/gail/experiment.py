"""A whole GAIL run: expert -> arms and controls -> report. `experiments/gail.py` is a call of `main`.

main()                                                        # reads the command line
run(Config(env="CartPole-v1", updater="adam", seeds=2))       # returns the content of report.json
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from l2ljax.checkpoint import Checkpoints, digest
from l2ljax.files import locked
from l2ljax.gail import cloning, experts, gym_adapter, imitate, report, rollout, updaters
from l2ljax.gail.imitate import Demonstrations
from l2ljax.gail.policy import Agent
from l2ljax.gail.rollout import Iterations
from l2ljax.gail.setup import PAIRS_KEY, Arm, Config, Task, arms, find_expert, prepare
from l2ljax.gail.updaters import Diverged, Updater
from l2ljax.runtime import flags, monitor
from l2ljax.runtime.provenance import provenance
from l2ljax.runtime.workdir import Workdir, holds_run
from l2ljax.train import Interrupted
from l2ljax.types import L2LError

__all__ = ["CHUNK", "MAY_CHANGE", "Chunks", "main", "run"]

CHUNK = 25
"""The largest number of iterations in one call of the jitted scan."""
EVALUATION_KEY = 2
MAY_CHANGE = ("workdir", "out", "updater", "controls", "episodes", "checkpoint_every")
"""Flags that may differ when a run resumes: they do not affect trained arms; arms may be added."""
Chunks = Callable[[Updater, int], tuple[Iterations, int]]
"""(updater, sign of the reward) -> the result of `_chunk`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of experiments/gail.py."""
    config = flags.read(Config, "GAIL with Adam or a learned updater of the discriminator.", arguments=arguments)
    with monitor.script(1):  # one program for all seeds, whose products share the cores
        run(config)


def run(config: Config) -> dict[str, Any]:
    """Train or read the expert, run or resume all arms, evaluate, and write everything into the workdir.

    Returns:
      The content of report.json.

    Raises:
      L2LError: bad settings, an expert below its threshold, a discriminator that diverged with one of the seeds, whose
        arm ends there (after the report is written), a workdir of another run or of another process, a full disk.
      Interrupted: SIGTERM or Ctrl-C while an arm trains; its state is saved. An expert begins anew.
    """
    config = flags.checked(config)
    task = prepare(config)
    key, spec = jax.random.key(PAIRS_KEY), task.environment.spec
    name = spec.name.replace("/", "_")
    workdir = config.workdir or Path(f"runs/gail_{name}_{config.updater.replace(',', '_')}_s{config.seed}")
    with locked(workdir):
        expert = find_expert(config, task)
        data = experts.subsample(key, expert, stride=spec.stride, count=config.trajectories)
        saved = {**dataclasses.asdict(config), "expert": config.expert and str(config.expert)}
        saved["demonstrations"] = digest(data)  # an expert's file can be written again
        Workdir(workdir, {name: value for name, value in saved.items() if name not in MAY_CHANGE})
        result, curves = _results(config, task, float(expert.returns.mean()), data, workdir)
        report.write(workdir, result, curves, config.out)
    print(report.table(result))
    print(f"report, curves and checkpoints: {workdir}")
    for name, row in result["arms"].items():
        if "diverged" in row:
            raise L2LError(f"{name} diverged: {row['diverged']}")
    return result


def _results(
    config: Config, task: Task, expert_return: float, data: Demonstrations, workdir: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the content of report.json, and arm -> returns [seeds, iterations]."""
    spec = task.environment.spec
    result: dict[str, Any] = {
        "environment": spec.name, "gymnasium": spec.gymnasium is not None, "sign": spec.sign,
        "expert_return": expert_return, "trajectories": config.trajectories, "expert_pairs": len(data.actions),
        "iterations": config.iterations, "pairs": task.columns * spec.horizon, "episodes": config.episodes,
        **provenance(), "arms": {},
    }  # fmt: skip
    curves: dict[str, np.ndarray] = {}
    chunks = functools.cache(functools.partial(_chunk, config, task))  # arms with the same program compile once
    for name, arm in arms(task, data).items():
        try:
            rows, agents, speed = _train_in_turn(config, task, arm, name, workdir, chunks)
        except Diverged as error:
            result["arms"][name] = {"diverged": str(error)}
            continue
        final = _final_returns(config, task, agents)
        curves[name] = rows["return"]
        result["arms"][name] = report.summarize(rows, final, expert_return) | speed
    if "cloning" in task.controls:
        clone = jax.jit(jax.vmap(lambda k: cloning.clone(k, task.networks, data)))
        result["arms"]["cloning"] = {"final_return": _final_returns(config, task, clone(task.keys)).tolist()}
    return result, curves


def _chunk(config: Config, task: Task, updater: Updater, sign: int) -> tuple[Iterations, int]:
    """Return a jitted run of several iterations, the largest divisor of their number up to CHUNK, and that divisor."""
    learn = imitate.learner(task.networks, task.disc, updater, sign=sign)
    length = next(n for n in range(min(CHUNK, config.iterations), 0, -1) if config.iterations % n == 0)
    run = gym_adapter.iterations(task.environment, task.networks, learn, columns=task.columns, length=length)
    return run, length


def _train_in_turn(
    config: Config, task: Task, arm: Arm, name: str, workdir: Path, chunks: Chunks
) -> tuple[dict[str, np.ndarray], Agent, dict[str, float | None]]:
    """Return what `_train` returns, of `config.together` seeds at a time; the speed is that of the first."""
    size, parts = config.together or config.seeds, []
    for first in range(0, config.seeds, size):
        keys = task.keys[first : first + size]
        some = dataclasses.replace(config, seed=config.seed + first, seeds=len(keys))
        title = name if size >= config.seeds else f"{name}_s{some.seed}"
        parts.append(_train(some, task._replace(keys=keys), arm, title, workdir, chunks))
    rows, agents, speeds = zip(*parts, strict=True)
    joined = (
        jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows),
        jax.tree.map(lambda *a: jnp.concatenate(a), *agents),
    )
    return *joined, speeds[0]


def _train(
    config: Config, task: Task, arm: Arm, name: str, workdir: Path, chunks: Chunks
) -> tuple[dict[str, np.ndarray], Agent, dict[str, float | None]]:
    """Run one arm, or resume it.

    Returns:
      {metric: [seeds, iterations]}; the last agents; the speed, if measured.
    """
    if not config.checkpoint_every and holds_run(workdir / name):
        raise L2LError(f"--checkpoint-every=0: {workdir / name} holds a run: leave it out, or choose another --workdir")
    folder = Workdir(workdir / name, {"arm": name}, seeds=config.seeds)
    states = imitate.init(task.keys, task.networks, task.disc, arm.updater, arm.demonstrations)
    checkpoints = Checkpoints(folder.path / "checkpoints") if config.checkpoint_every else None
    done, states = checkpoints.resume(like=states) if checkpoints else (0, states)
    folder.forget_after(done)
    chunk, length = chunks(arm.updater, arm.sign)
    with (
        monitor.stopping_on_signals() as stopping,
        tqdm(total=config.iterations, initial=done, desc=name, unit="it", leave=False, disable=None) as bar,
    ):
        while done < config.iterations:
            began = time.perf_counter()
            states, metrics = chunk(task.environment.params, states, arm.demonstrations)
            curves = {key: np.asarray(values) for key, values in metrics.items()}
            curves["seconds"] = np.full((config.seeds, length), (time.perf_counter() - began) / length)
            rows = [{key: values[:, i].tolist() for key, values in curves.items()} for i in range(length)]
            folder.record([{"step": done + i} | row for i, row in enumerate(rows, start=1)])
            for seed, largest in enumerate(curves["max_abs"], start=config.seed):
                updaters.check(largest, when=f"with seed {seed}, between iterations {done + 1} and {done + length} ")
            done += length
            bar.set_postfix({k: f"{curves[k][:, -1].mean():.3g}" for k in ("return", "accuracy", "kl")}, refresh=False)
            bar.update(length)
            due = done // max(1, config.checkpoint_every) > (done - length) // max(1, config.checkpoint_every)
            if checkpoints and (due or stopping() or done == config.iterations):
                checkpoints.save(done, states)
            if stopping() and not checkpoints:
                raise L2LError(f"stopped after iteration {done} of {name}; nothing is saved: --checkpoint-every is 0")
            if stopping():
                raise Interrupted(done)
    rows = [row for row in folder.rows() if row.keys() >= {*report.METRICS}]
    if not rows:
        raise L2LError(f"{folder.path} lacks the rows of its run: delete that folder to train {name} again")
    # A missing row, which `forget_after` names, is as the one before.
    steps, wanted = [row["step"] for row in rows], np.arange(1, config.iterations + 1)
    known = np.maximum(np.searchsorted(steps, wanted, side="right") - 1, 0)
    whole = {key: np.array([row[key] for row in rows]).T[:, known] for key in report.METRICS}
    seconds = [length * row["seconds"][0] for row in rows[::length] if "seconds" in row]  # also of earlier processes
    return whole, states.agent, _speed(seconds, length * config.seeds)


def _speed(seconds: list[float], iterations: int) -> dict[str, float | None]:
    """Return iterations per second of all seeds together after compilation, and the first chunk's extra seconds."""
    if len(seconds) < 2:
        return {"iterations_per_second": None, "compile_seconds": None}
    usual = statistics.median(seconds[1:])
    return {"iterations_per_second": iterations / usual, "compile_seconds": seconds[0] - usual}


def _final_returns(config: Config, task: Task, agents: Agent) -> np.ndarray:
    """Return the policies' mean returns [seeds] over episodes, in gymnasium if it has the environment."""

    def one(i: int) -> float:
        agent = jax.tree.map(lambda a: a[i], agents)
        key = jax.random.fold_in(jax.random.key(EVALUATION_KEY), config.seed + i)
        acted = experts.act(key, task.environment, task.networks, agent, episodes=config.episodes)
        return float(rollout.episode_returns(acted).mean())

    return np.array([one(i) for i in range(config.seeds)])
