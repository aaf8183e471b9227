"""Judge a model: attacks, AutoAttack, masking checks, one report (`experiments/evaluate.py`).

python experiments/evaluate.py --victim=runs/digits_rnn_adv_digits_cnn_s0 --attacks=standard,paper
python experiments/evaluate.py --victim=my.module:make_logits_fn --dataset=cifar10 --eps=8/255
python experiments/evaluate.py --victim=my.module:make_logits_fn --dataset=mine.npz --eps=8/255    # images, labels
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from l2ljax import attacks, data, threat
from l2ljax.attacks import names
from l2ljax.attacks.ensemble import VERSIONS
from l2ljax.checkpoint import digest, place
from l2ljax.evaluate import InTurn, evaluate, run_in_turn, run_standard_evaluation
from l2ljax.evaluate.masking import masking_checks, randomized
from l2ljax.evaluate.standard import default_batch_size
from l2ljax.files import locked, write_files
from l2ljax.models.shipped import name_of
from l2ljax.report import html, markdown
from l2ljax.run import illustrate, trained
from l2ljax.run.settings import Norm
from l2ljax.runtime.flags import checked, read
from l2ljax.runtime.monitor import script
from l2ljax.runtime.provenance import provenance
from l2ljax.types import Array, L2LError, LogitsFn, one_line
from l2ljax.values import Count, Range, Seed, check

__all__ = ["PAPER", "Flags", "evaluation_folder", "main", "run"]

PAPER = ("fgsm", "pgd20", "pgd100", "margin100", "cw100", "momentum10")
"""The attacks named `paper` in --attacks."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """Whom to judge, and how."""

    victim: str
    """The workdir of a run (WORKDIR@best: what its validation chose), pretrained:NAME, or module:function, a function
    without arguments that returns images -> logits."""
    stochastic: bool = False
    """The function returns (images, keys [B]) -> logits: a model with noise of its own, drawn from the keys."""
    attacks: str = "standard,paper"
    """AutoAttack's versions (standard, fast, plus, rand), paper (several PGDs and C&W), the names of single attacks,
    trained:WORKDIR, and own, the run's trained attacker."""
    surrogates: str = ""
    """Workdirs, separated by commas, of runs whose adversarial images are tried on the victim: the black box."""
    black_box: str | None = None
    """The attacks on the surrogates, fgsm,pgd10 by default."""
    dataset: str | None = None
    """The data set, by default a run's own, as for the next three; a module:function has none. A name, or arrays of
    yours as a .npz file or module:function (see l2ljax.data.arrays)."""
    data_dir: str | None = None
    """A folder or archive with the data."""
    eps: str | None = None
    """The threat's radius, like 8/255 or 0.031."""
    norm: Norm | None = None
    """linf by default."""
    eval_size: Count = 1000
    """Test images, the first ones."""
    batch_size: Count | None = None
    """By default 250, on a CPU fewer (32 of CIFAR's images)."""
    seed: Seed = 0
    attack_seeds: Annotated[int, Range(1, 10_000)] = 1
    """The number of runs of each attack, with other seeds; the worst is reported (L2L reports the worst of five)."""
    masking: bool = True
    """Look for masked gradients, or with --no-masking do not."""
    figures: str = ""
    """To draw: all, or some of sweep (accuracy against radius and steps), losses, landscape, perturbations."""
    baseline: str | None = None
    """The workdir of a run to draw beside the victim."""
    out: Path | None = None
    """A folder; VICTIM/evaluation for a run (evaluation_best for WORKDIR@best), ./evaluation/NAME for pretrained:NAME,
    ./evaluation otherwise. It holds the attacks that are done: empty it when the code of an --import changes."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of experiments/evaluate.py."""
    tables = lambda: {"Attacks": names.table(), "Models": trained.table()}
    flags = read(Flags, str(__doc__), tables, arguments)
    with script():
        run(flags)


def run(flags: Flags) -> dict[str, Any]:
    """Judge, write robustbench.json, evaluation.md, index.html and figures.

    Returns:
      The content of robustbench.json.

    Raises:
      L2LError: no such run or function, unknown attacks, a model that is not one.
    """
    flags = checked(flags)
    check(Seed, flags.seed + flags.attack_seeds - 1, "--seed plus --attack-seeds")
    if flags.baseline and not flags.figures:
        raise L2LError(f"--baseline={flags.baseline}: give --figures too, which it is drawn in")
    if flags.black_box is not None and not flags.surrogates:
        raise L2LError(f"--black-box={flags.black_box}: give --surrogates too, the runs that it attacks")
    victim, about, folder = _victim(flags)
    ball = threat.create(about["norm"], about["eps"])
    dataset = data.load(about["dataset"], flags.data_dir or about.get("data_dir"))
    split = dataset.test.take(slice(flags.eval_size))
    batch_size = flags.batch_size or default_batch_size(split.images.shape[1:])
    _check_images(victim, flags, dataset)
    logits_fn = randomized(victim, jax.random.key(flags.seed)) if flags.stochastic else victim
    wanted = [n for name in flags.attacks.split(",") if name for n in (PAPER if name == "paper" else (name,))]
    about_victim = (flags.figures, flags.victim, logits_fn, ball, dataset)
    plan = illustrate.make_plan(*about_victim, baseline=flags.baseline, attackers=wanted, batch_size=batch_size)
    for name in wanted:
        if name in VERSIONS and VERSIONS[name].stochastic and not flags.stochastic:
            raise L2LError(f"--attacks={name} is for models with noise of their own: give --stochastic or no {name}")
    jobs = {name: _job(name, flags.victim, ball, victim if name == "rand" else logits_fn) for name in wanted}
    crossings = _crossings(flags, ball, logits_fn, dataset.name)
    seeds = range(flags.seed, flags.seed + flags.attack_seeds)
    with locked(folder):
        both = {**jobs, **{title: job for title, (*_, job) in crossings.items()}}
        robust = _verdicts(both, split, folder, seeds=seeds, batch_size=batch_size)
    key = jax.random.key(flags.seed)
    clean = evaluate(logits_fn, split, {}, key=key, batch_size=batch_size).clean_acc
    noise = victim if flags.stochastic else None
    checks = []
    if flags.masking:
        checks = masking_checks(logits_fn, split, ball, key=key, stochastic=noise, batch_size=batch_size)
    drawn = illustrate.draw(plan, split, folder, key=key)
    transferred: dict[str, dict[str, float]] = {}
    for title, (who, name, _) in crossings.items():
        transferred.setdefault(who, {})[name] = float(robust[title].mean())
    result = {
        "name": flags.victim,
        **dict.fromkeys(("link", "authors", "venue", "reported")),
        "additional_data": False,
        "number_forward_passes": 1,
        **{"dataset": about["dataset"], "architecture": about["arch"], "eps": about["eps"]},
        "clean_acc": f"{100 * clean:.2f}",
        "autoattack_acc": f"{100 * robust['standard'].mean():.2f}" if "standard" in robust else None,
        "unreliable": any(not check.passed for check in checks) if checks else None,
        "provenance": {
            **provenance(),
            **{"norm": about["norm"], "eps_value": ball.eps, "images": len(split.labels), "seeds": list(seeds)},
            "attacks": {name: float(robust[name].mean()) for name in jobs},
            "parameters": {name: attacks.parameters(name, ball) for name in jobs if not trained.learned(name)},
            "black_box": transferred,
            "worst_case_acc": float(np.logical_and.reduce(list(robust.values())).mean()) if robust else None,
            "model_sha256": digest(victim) if isinstance(victim, jax.tree_util.Partial) else None,
            "checks": [check._asdict() for check in checks],
        },
    }
    page = markdown.judgement(result, checks, drawn)
    texts = {"robustbench.json": json.dumps(result, indent=2) + "\n", "evaluation.md": page}
    texts["index.html"] = html.page(page)
    write_files({folder / name: text.encode() for name, text in texts.items()})
    print(f"{page}\nreport and figures: {folder}")
    return result


def _crossings(
    flags: Flags, ball: threat.Ball, logits_fn: LogitsFn, dataset: str
) -> dict[str, tuple[str, str, Callable[..., InTurn]]]:
    """Return title -> (surrogate's workdir, attack, job) of the black box."""
    black_box = [*filter(None, ("fgsm,pgd10" if flags.black_box is None else flags.black_box).split(","))]
    surrogates = [*filter(None, flags.surrogates.split(","))]
    for who in surrogates:
        trained.check_dataset(who, trained.read_config(who, "dataset"), dataset)
    return {
        f"{name} on {who}": (who, name, _job(name, who, ball, logits_fn, trained.load_classifier(who)))
        for who in surrogates
        for name in black_box
    }


def _verdicts(
    jobs: Mapping[str, Callable[..., InTurn]], split: data.Split, folder: Path, *, seeds: Iterable[int], batch_size: int
) -> dict[str, np.ndarray]:
    """Return title -> whether each image resists the attack with all seeds; the folder keeps what is done."""
    robust: dict[str, np.ndarray] = {}
    x = data.pixels(split.images)
    for title, job in jobs.items():
        for seed in seeds:
            state, key = folder / "states" / f"{_file_name(title)}_{seed}.npz", jax.random.key(seed)
            scores = job(x, split.labels, key=key, batch_size=batch_size, progress=print, state_path=state)
            robust[title] = robust.get(title, scores.robust) & scores.robust
        print(f"{title}: {robust[title].mean():.2%}", flush=True)
    return robust


def _job(
    name: str, workdir: str, ball: threat.Ball, logits_fn: LogitsFn, surrogate: LogitsFn | None = None
) -> Callable[..., InTurn]:
    """Return the function that runs the named attack: (x, y, key=, batch_size=, state_path=, progress=) -> result.

    `own` is the attacker of `workdir`. With a surrogate, the classifier of that workdir, this one is attacked, and its
    adversarial images are tried on `logits_fn`.
    """
    if name in VERSIONS and surrogate is None:
        return functools.partial(run_standard_evaluation, logits_fn, ball=ball, version=name)
    attack = trained.named_attack(name, ball, functools.partial(trained.load_attacker, workdir, ball=ball))
    if surrogate is not None:
        attack = attacks.transfer(attack, surrogate)
    keywords = None if trained.learned(name) else attacks.parameters(name, ball)
    about = (keywords,) if surrogate is None else (keywords, workdir)
    return functools.partial(run_in_turn, logits_fn, attacks={name: attack}, ball=ball, about=about)


def _file_name(title: str) -> str:
    """Return the title for a file's name, with a checksum where characters are replaced: names differ as titles do."""
    name = re.sub(r"[^0-9A-Za-z+]+", "_", title)[:100]
    return name if name == title else f"{name}_{digest((), title)[:8]}"


def _check_images(victim: Callable[..., Array], flags: Flags, dataset: data.Dataset) -> None:
    """Ask the victim for the shape of its logits, without computing them."""
    x = jax.ShapeDtypeStruct((2, *dataset.image_shape), np.float32)
    try:
        jax.eval_shape(victim, x, *([jax.random.split(jax.random.key(0), 2)] if flags.stochastic else []))
    except Exception as error:  # whatever a model of the user's raises
        raise L2LError(
            f"{flags.victim} fails on images {list(x.shape)}, as {dataset.name} has them ({one_line(error)}): "
            "name the --dataset that it is for, or let it take these"
        ) from error


def _victim(flags: Flags) -> tuple[Callable[..., Array], dict[str, Any], Path]:
    """Return (its logits function, its data, architecture and threat, where to write); flags come before a run's."""
    asked = {name: value for name in ("dataset", "eps", "norm") if (value := getattr(flags, name)) is not None}
    if ":" in flags.victim and name_of(flags.victim) is None and not place(flags.victim)[0].exists():
        if flags.dataset is None or flags.eps is None:
            raise L2LError("--victim=module:function needs --dataset and --eps")
        known = {"arch": flags.victim, "norm": "linf", **asked}
        return trained.load_function(flags.victim), known, flags.out or Path("evaluation")
    if flags.stochastic:
        raise L2LError(f"--stochastic: {flags.victim} is a run, whose classifier has no noise: leave it out")
    saved = trained.read_config(flags.victim)
    if flags.norm not in (None, saved.get("norm")) and flags.eps is None:
        raise L2LError(f"--norm={flags.norm}: give --eps too, that of {flags.victim} is in {saved['norm']}")
    about = {**saved, **({"data_dir": None} if flags.dataset else {}), **asked}
    return trained.load_classifier(flags.victim), about, flags.out or evaluation_folder(flags.victim)


def evaluation_folder(victim: str) -> Path:
    """Return the folder where a run is judged, see `Flags.out`; ./evaluation/NAME for pretrained:NAME."""
    if (name := name_of(victim)) is not None:
        return Path("evaluation") / name
    folder, which = place(victim)
    return folder / ("evaluation" if which == "last" else "evaluation_best")
