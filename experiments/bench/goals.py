"""Training, attacks and starts against torch on a CPU, and the target ratios (`experiments/goals.py`).

Each measurement is a separate command, with its result kept in a folder; a second call runs the missing ones.
"""

import functools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l2ljax.files import write_json
from l2ljax.runtime.provenance import provenance
from l2ljax.runtime.workdir import read_json
from l2ljax.types import L2LError
from papers.speeds import quotient

__all__ = ["Goal", "collect", "first_step", "fresh_clone", "imported", "keep", "measure", "output_of", "reached", "run"]

ROOT = Path(__file__).parent.parent.parent
TRAINED = "plain,pgd_adv,rnn_adv,grad_l2l,grad_l2l:alternating"
COMMANDS = {
    "training": f"throughput.py --train={TRAINED} --attacker-width=16 --rivals=torch --repeats=5 --memory",
    "training_small_cnn": "throughput.py --model=small_cnn --train=pgd_adv --rivals=torch --repeats=7",
    "pgd10": "throughput.py --attacks=pgd10 --rivals=torchattacks,torch --repeats=7",
    "pgd10_one_device": "throughput.py --attacks=pgd10 --rivals=torchattacks,torch --repeats=7 --devices=1",
    "growth": "throughput.py --train=pgd_adv,rnn_adv --rivals=torch --batch-sizes=32,128,512 --repeats=3",
    "growth_steps": "throughput.py --train=pgd_adv,rnn_adv --rivals=torch --steps=1,5,20 --repeats=3",
    "autoattack": "autoattack.py --victim={victim} --images=256",
}
"""Measurement -> script in experiments/ and its flags."""


BOUNDS = """What bounds the misses, by profiles on a processor with AVX-512: the compiler's convolutions and our
gradients of kernels alone take about as long as torch's whole training step. The rest is elementwise: BatchNorm, ReLU
and the compiler's copies pass over activations in memory, in pages that the compiler's runtime frees after each step
and the kernel maps again. On one device the compiler cuts each convolution into parts for its threads, which wait for
each other."""
"""The reason for goals that are missed, as the tables report it."""


class Goal(NamedTuple):
    """A ratio, torch's time / ours, or a number of seconds."""

    title: str
    measurement: str
    goal: float
    method: str | None = None
    """The method of the training steps."""
    rival: str = ""
    """A part of the rival's name; the fastest match counts."""
    over: str = ""
    """Compare our time with that of this method of ours, at most `goal`."""
    seconds: bool = False
    """Whether `goal` is the largest number of seconds."""


GOALS = [
    Goal("plain, resnet20", "training", 0.9, "plain"),
    Goal("pgd_adv, resnet20", "training", 1.25, "pgd_adv"),
    Goal("rnn_adv, resnet20, torch unrolled as its paper", "training", 1.5, "rnn_adv", "unrolled"),
    Goal("rnn_adv, resnet20, torch with our linear losses", "training", 1.0, "rnn_adv", "linear"),
    Goal("grad_l2l, attacker of width 16, joint", "training", 1.25, "grad_l2l"),
    Goal("grad_l2l, attacker of width 16, alternating", "training", 1.25, "grad_l2l:alternating"),
    Goal("pgd_adv, small_cnn on 28 x 28", "training_small_cnn", 1.5, "pgd_adv"),
    Goal("PGD-10, a device per core", "pgd10", 1.3),
    Goal("PGD-10, one device", "pgd10_one_device", 1.3),
    Goal("AutoAttack, 256 images, pyautoattack", "autoattack", 1.5),
    Goal("rnn_adv / pgd_adv, both ours", "training", 1.1, "rnn_adv", over="pgd_adv"),
    Goal("first step of rnn_adv on digits, s", "first_step_digits", 15, seconds=True),
    Goal("first step of rnn_adv, resnet20, s", "first_step_resnet20", 60, seconds=True),
    Goal("import l2ljax, s", "import", 1.5, seconds=True),
    Goal("the README's first command on a fresh clone, s", "readme", 90, seconds=True),
]


def measure(folder: Path, *, victim: Path | None, data_dir: Path | None, only: str = "") -> None:
    """Run the measurements that are missing in the folder, which gets a JSON for each; see the script's flags.

    Raises:
      L2LError: a failed command, or an unknown measurement.
    """
    for needed in filter(None, (victim and victim / "config.json", data_dir)):
        if not needed.exists():
            raise L2LError(f"there is no {needed}: correct --victim or --data-dir")
    jobs: dict[str, Callable[[Path], None]] = {
        name: functools.partial(run, *command.format(victim=victim).split())
        for name, command in COMMANDS.items()
        if victim or "{victim}" not in command
    }
    jobs["import"] = lambda out: keep(out, [imported() for _ in range(7)])
    jobs["first_step_digits"] = lambda out: keep(out, [first_step("digits.py") for _ in range(3)])
    if data_dir:
        flags = ("--arch=resnet20", f"--data-dir={data_dir}")
        jobs["first_step_resnet20"] = lambda out: keep(out, [first_step("cifar10.py", *flags) for _ in range(3)])
    jobs["readme"] = lambda out: keep(out, [fresh_clone()])
    if unknown := set(filter(None, only.split(","))) - jobs.keys():
        raise L2LError(f"--only={min(unknown)}: choose from {', '.join(jobs)}; some need --victim or --data-dir")
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in jobs.items():
        path = folder / f"{name}.json"
        if not path.exists() and (not only or name in only.split(",")):
            print(f"{name} ...", flush=True)
            job(path)


def run(script: str, *flags_and_out: str | Path) -> None:
    """Run a script of experiments/ in its own process; the last argument is the output file."""
    *flags, out = flags_and_out
    output_of([sys.executable, str(ROOT / "experiments" / script), *map(str, flags), f"--out={out}"])


def output_of(command: Sequence[str], cwd: str | Path | None = None) -> str:
    """Return what a command prints.

    Raises:
      L2LError: it failed; the last line of its errors.
    """
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        message = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise L2LError(f"{' '.join(command)}: {message}")
    return done.stdout


def keep(out: Path, seconds: list[float]) -> None:
    """Write the seconds of several starts."""
    write_json(out, {**provenance(), "seconds": seconds})


def imported() -> float:
    """Return the seconds of starting Python and importing the library."""
    began = time.perf_counter()
    output_of([sys.executable, "-c", "import l2ljax"])
    return time.perf_counter() - began


def first_step(script: str, *flags: str) -> float:
    """Return the seconds from the start of a script to its first recorded training step, without compiled programs."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "experiments" / script), "--method=rnn_adv", f"--workdir={workdir}"]
        began = time.perf_counter()
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
        process = subprocess.Popen([*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        rows = workdir / "metrics.jsonl"
        while not (rows.exists() and rows.stat().st_size):
            if process.poll() is not None:
                raise L2LError(f"{script} ended before its first step: {process.communicate()[1].decode()[-200:]}")
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        process.kill()
        process.communicate()
        return seconds


def fresh_clone() -> float:
    """Return the seconds of the README's first command in a clone, with virtual environment and downloads."""
    command = re.search(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert command
    with tempfile.TemporaryDirectory() as folder:
        output_of(["git", "clone", "-q", str(ROOT), folder])
        began = time.perf_counter()
        output_of(["bash", "-c", command[0]], cwd=folder)
        return time.perf_counter() - began


def collect(folder: Path) -> dict[str, Any]:
    """Return "goals", a row for each measured goal, and "records", the result of each measurement."""
    records = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    for name, record in records.items():  # without this machine's folders
        flags = COMMANDS.get(name, "").format(victim="WORKDIR")
        record["command"] = f"python experiments/{flags or f'goals.py --only={name}'}"
    rows = [reached(goal, records[goal.measurement]) for goal in GOALS if goal.measurement in records]
    return {"title": "Training, attacks and starts beside torch", "goals": rows, "bounds": BOUNDS, "records": records}


def reached(goal: Goal, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return both sides' figures, their ratio in each round, and whether its median meets the goal."""

    def row(most: bool, ratio: dict[str, float], ours: list[float], **rival: Any) -> dict[str, Any]:
        met = ratio["median"] <= goal.goal if most else ratio["median"] >= goal.goal
        return {"title": goal.title, "goal": goal.goal, "most": most, "ratio": ratio, "ours": ours, **rival, "met": met}

    if goal.seconds:
        seconds = record["seconds"]
        ratio = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
        return row(True, ratio, seconds)
    if "autoattack" in record:
        rounds = [r["seconds"] for r in record["autoattack"]]
        timed = {name: [r[name] for r in rounds] for name in rounds[0]}
        ours = timed.pop("ours")
    else:
        timed = {r["program"]: r["seconds"] for r in record["speed"] if r.get("method") == goal.method}
        ours = timed.pop("l2ljax")
        if goal.over:
            programs = {r.get("method"): r["seconds"] for r in record["speed"] if r["program"] == "l2ljax"}
            return row(True, quotient(ours, programs[goal.over]), ours)
    ratios = {name: quotient(seconds, ours) for name, seconds in timed.items() if goal.rival in name}
    best = min(ratios, key=lambda name: ratios[name]["median"])
    return row(False, ratios[best], ours, rival=best, theirs=timed[best])
