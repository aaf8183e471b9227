"""A first session on a GPU, within minutes: verdicts, speed, training, judgement (`experiments/gpu.py`).

Jobs run in order of importance (`jobs`), each in its own process (`agenda`), on a CPU as on a GPU.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bench import agenda, benchmark, rivals, throughput, training, verdicts
from bench.agenda import Job
from bench.benchmark import BALL
from l2ljax import data, defenses, models
from l2ljax.files import check_writable, write_json
from l2ljax.run import experiment, judge
from l2ljax.run.config import Config, resolve
from l2ljax.run.settings import Dtype
from l2ljax.runtime.provenance import provenance
from l2ljax.train import AXIS, Interrupted
from l2ljax.types import L2LError
from l2ljax.values import Count, Positive, parse_list

__all__ = ["Flags", "attack", "check", "jobs", "refer", "run", "speed", "summary", "train"]

EXACT, DEFAULT = "highest", "default"
"""Precisions of products in float32: full, and the device's default, TF32 on NVIDIA's."""
STEP_OF = "pgd_adv"
"""The method whose training step is timed."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Sizes, names and the time limit."""

    minutes: Positive = 9.0
    """Time for all jobs; it ends at most ten seconds later."""
    data_dir: str | None = None
    """The training data, as for the other scripts."""
    only: str = ""
    """Jobs to run, separated by commas; all by default, in this order: reference (if missing), verdicts,
    speed-MODEL-DTYPE of the first dtype, training, autoattack, speed of the other dtypes and with slow rivals."""
    out: Path = Path("runs/gpu.json")
    folder: Path = Path("runs/gpu")
    """For the jobs' own files, logs and runs."""

    reference: Path = Path("runs/gpu_reference.npz")
    """A CPU's results, with their network, images and programs; if missing, a CPU computes them first."""
    smoke_arch: str = "resnet20"
    smoke_shape: tuple[Count, Count, Count] = (16, 16, 3)
    smoke_images: Count = 20
    programs: str = (
        "pgd10,pgd_adv,rnn_adv,autoattack,pgd10:bfloat16,pgd_adv:bfloat16,pgd_adv:remat,grad_l2l,l2l_da,plain"
    )
    """For the reference: attacks, autoattack and methods (see `verdicts`)."""
    tf32: str = "pgd10,pgd_adv,rnn_adv,grad_l2l,autoattack"
    """Programs to compare a second time in the device's default precision, TF32 on NVIDIA's."""

    models: str = "wrn_34_10,resnet18"
    dtypes: str = "bfloat16,float32"
    batch_size: Count = 256
    rivals: str = "torch"
    """Rivals of PGD-10, see experiments/throughput.py."""
    slow_rivals: str = "torch_compile"
    """Rivals that compile for long, in the first dtype."""
    repeats: Count = 5

    dataset: str = "cifar10"
    arch: str = "resnet18"
    dtype: Dtype = "bfloat16"
    methods: str = "pgd_adv,rnn_adv,grad_l2l,two_step_l2l"
    """Trained on equally many images, as many as the time allows."""
    most_epochs: Count = 30
    train_batch: Count = 128
    lr: Positive = 0.05
    """Every method's learning rate, with cosine decay to 0. The rest is as in the recipes, except the radius, 8/255."""
    attacks: str = "pgd100"
    eval_size: Count = 1000


def run(flags: Flags) -> dict[str, Any]:
    """Run the jobs, write JSON and print a summary; return the JSON's content.

    Raises:
      L2LError: an unknown job.
    """
    selected = jobs(flags)
    check_writable(flags.out)
    content = agenda.run(selected, out=flags.out, folder=flags.folder, seconds=60 * flags.minutes, summarize=summary)
    print(json.dumps(content["summary"], indent=2), flush=True)
    return content


def jobs(flags: Flags) -> list[Job]:
    """List the jobs that the flags select, in order of importance."""
    names, (first, *others) = _checked(flags)
    known = [
        Job("verdicts", check, (flags,), 4),
        *(Job(_cell(m, first), speed, (flags, m, first, flags.rivals, STEP_OF), 6 / len(names)) for m in names),
        Job("training", train, (flags,), 10),
        Job("autoattack", attack, (flags,), 3),
        *(Job(_cell(m, d), speed, (flags, m, d, flags.rivals, STEP_OF), 1) for d in others for m in names),
    ]
    for rival in filter(None, flags.slow_rivals.split(",")):
        known += [Job(f"{_cell(m, first)}-{rival}", speed, (flags, m, first, rival, ""), 0.5) for m in names]
    if not flags.reference.exists():
        known.insert(0, Job("reference", refer, (flags,), 4))
    chosen = flags.only.split(",") if flags.only else [job.name for job in known]
    if unknown := set(chosen) - {job.name for job in known}:
        raise L2LError(f"--only={','.join(sorted(unknown))}: choose from {', '.join(job.name for job in known)}")
    return [job for job in known if job.name in chosen]


def _checked(flags: Flags) -> tuple[list[str], list[str]]:
    """Return (models, dtypes), after a look at every name: no job begins that would fail."""
    names = parse_list(str, flags.models, "--models")
    for name in (*names, flags.smoke_arch, flags.arch):
        models.create(name)
    for program in (*parse_list(str, flags.programs, "--programs"), *filter(None, flags.tf32.split(","))):
        verdicts.parse(program)
    for method in parse_list(str, flags.methods, "--methods"):
        resolve(flags.dataset, method, _config(flags, method))
    rivals.split(f"{flags.rivals},{flags.slow_rivals}")
    return names, parse_list(Dtype, flags.dtypes, "--dtypes")


def _config(flags: Flags, method: str, **plan: Any) -> Config:
    return Config(
        method=method, arch=flags.arch, eps="8/255", batch_size=flags.train_batch, lr=flags.lr, lr_schedule="cosine",
        dtype=flags.dtype, data_dir=flags.data_dir, val_size=0, eval_size=flags.eval_size, attacks=flags.attacks,
        **plan,
    )  # fmt: skip


def _cell(model: str, dtype: str) -> str:
    return f"speed-{model}-{dtype}"


def refer(flags: Flags, *, path: Path, seconds: float) -> None:
    """Make the reference, on the CPU."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)  # else most of the time goes into compiling
    names, shape = flags.programs.split(","), flags.smoke_shape
    verdicts.make_reference(flags.reference, flags.smoke_arch, names, shape=shape, images=flags.smoke_images)
    write_json(path, {"about": provenance(), "programs": names})


def check(flags: Flags, *, path: Path, seconds: float) -> None:
    """Compare the verdicts on this device with the reference's."""
    reference = verdicts.load_reference(flags.reference)
    record: dict[str, Any] = {"about": provenance(), "reference": reference.about, EXACT: {}, DEFAULT: {}}
    short = [name for name in flags.tf32.split(",") if name in reference.outcomes]
    for precision, names in {EXACT: list(reference.outcomes), DEFAULT: short}.items():
        with jax.default_matmul_precision(precision):
            for name in names:
                record[precision][name] = _attempt(lambda name=name: verdicts.compare(reference, name))  # type: ignore[misc]
                write_json(path, record)


def speed(flags: Flags, model: str, dtype: str, rivals: str, methods: str, *, path: Path, seconds: float) -> None:
    """Time PGD-10 with its rivals, and a training step."""
    chosen = throughput.Flags(
        model=model, dtypes=dtype, attacks="pgd10", train=methods, batch_sizes=str(flags.batch_size), rivals=rivals,
        repeats=flags.repeats, out=path,
    )  # fmt: skip
    throughput.run(chosen)


def train(flags: Flags, *, path: Path, seconds: float) -> None:
    """Train the methods on equally many images, as many as the time allows, and attack the results."""
    plan = _plan(flags, seconds)
    record: dict[str, Any] = {"about": provenance(), "plan": plan, "runs": {}}
    write_json(path, record)
    for method in flags.methods.split(","):
        workdir = flags.folder / f"{method}-{plan['epochs']}x{plan['train_size']}"
        config = _config(flags, method, workdir=str(workdir), **plan)
        row = _attempt(lambda config=config: experiment.run(resolve(flags.dataset, config.method, config)))  # type: ignore[misc]
        record["runs"][method] = {**row, "workdir": str(workdir)}
        write_json(path, record)


def _plan(flags: Flags, seconds: float) -> dict[str, Any]:
    """Return {"epochs", "train_size"} of each method.

    A step of pgd_adv is measured; the others follow by their multiplications. Each method gets 1.5 times that step's
    compilation, for its own and its report's; a fifth of the rest is left as a reserve.
    """
    began = time.monotonic()
    total = len(data.load(flags.dataset, flags.data_dir).train.labels)
    classifier, _, batch = benchmark.random_batch(flags.arch, flags.train_batch, dtype=flags.dtype)
    step = benchmark.step_program(classifier, batch, defenses.create(STEP_OF, classifier, BALL, axis_name=AXIS))
    measured = benchmark.alternate({STEP_OF: step}, images=flags.train_batch, repeats=3)[STEP_OF]

    def flops(method: str) -> float:
        return training.known(training.Task(flags.arch, flags.dtype, flags.train_batch, method, BALL.eps))["flops"]

    methods = flags.methods.split(",")
    steps = sum(flops(method) for method in methods) / flops(STEP_OF)
    left = seconds - (time.monotonic() - began) - 1.5 * len(methods) * measured["first_seconds"]
    images = int(max(0.8 * left, 0) * measured["images_per_second"] / steps)
    if images < total:
        return {"epochs": 1, "train_size": max(images // flags.train_batch, 1) * flags.train_batch}
    return {"epochs": min(images // total, flags.most_epochs), "train_size": total}


def attack(flags: Flags, *, path: Path, seconds: float) -> None:
    """Attack the trained models with AutoAttack."""
    trained = flags.folder / "training.json"
    if not trained.exists():
        raise L2LError(f"{trained} is missing: run the job training first")
    record: dict[str, Any] = {"about": provenance(), "runs": {}}
    for method, row in json.loads(trained.read_text())["runs"].items():
        chosen = judge.Flags(
            victim=row["workdir"], attacks="standard", eval_size=flags.eval_size, batch_size=flags.eval_size,
            data_dir=flags.data_dir, masking=False,
        )  # fmt: skip
        record["runs"][method] = _attempt(lambda chosen=chosen: judge.run(chosen))  # type: ignore[misc]
        write_json(path, record)


def _attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the function's result, or {"error": a line}, so that a failure does not affect the others."""
    try:
        return function()
    except Interrupted:
        raise
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:1000]}"}


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Return the most important numbers of job -> its JSON.

    These are "unequal", the programs that failed or whose verdicts differ from the CPU's, by precision;
    "share_of_ceiling" of each timing; "times_rival", our speed over each rival's; "accuracy" of each method.
    """
    chosen: dict[str, Any] = {"unequal": {}, "share_of_ceiling": {}, "times_rival": {}, "accuracy": {}}
    for precision in (EXACT, DEFAULT):
        rows = results.get("verdicts", {}).get(precision, {})
        chosen["unequal"][precision] = [name for name, row in rows.items() if not row.get("equal")]
    for name, job in results.items():
        ours: dict[str, float] = {}
        for row in job["speed"] if name.startswith("speed") else []:
            what = f"{row['what']} of {row['method']}" if "method" in row else row["what"]
            cell, seconds = f"{what}, {row['model']}, {row['dtype']}", statistics.median(row["seconds"])
            if row["program"] == "l2ljax":
                ours[cell] = seconds
                ceiling = job["ceiling"][row["dtype"]] * job["devices"]
                chosen["share_of_ceiling"][cell] = row["flops"] / seconds / ceiling
            else:
                chosen["times_rival"].setdefault(cell, {})[row["program"]] = seconds / ours[cell]
    for method, row in results.get("training", {}).get("runs", {}).items():
        if "clean_acc" in row:
            robust = {name: attack["robust_acc"] for name, attack in row["attacks"].items()}
            chosen["accuracy"][method] = {"clean": row["clean_acc"], **robust}
    for method, row in results.get("autoattack", {}).get("runs", {}).items():
        if "provenance" in row:
            chosen["accuracy"].setdefault(method, {})["autoattack"] = row["provenance"]["attacks"]["standard"]
    return chosen
