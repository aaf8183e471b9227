"""Commands of our scripts as data, and their parts of the tables' rows.

victim = trained("ours", "mnist", "small_cnn", "rnn_adv", epochs=6)
part = white("rnn_adv:table3", "RNN-Adv", victim, {"PGD-10": "pgd10@rnn"}, images=1000)
part.jobs[0].command({"mnist": "/data/mnist"})
"""

import functools
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from l2ljax.models import shipped
from l2ljax.run import recipes
from papers import effort
from papers.effort import Effort

__all__ = [
    "AUTOATTACK", "FAST", "NEUTRAL", "RESULTS", "Job", "Part", "attacker", "bare", "black", "effort_of", "judged",
    "kept", "trained", "white",
]  # fmt: skip

RESULTS = "experiments/results"


class Job(NamedTuple):
    """One command. It is complete once the file `made` exists, which it writes last and completely."""

    script: str
    flags: tuple[str, ...]
    made: str
    """A path from the repository's root."""
    effort: Effort = Effort()
    dataset: str = ""
    """The data set for its --data-dir."""
    about: Mapping[str, object] = {}
    """The required content of report.json, for a training run."""

    @property
    def folder(self) -> str:
        """The workdir of a run."""
        return self.made.rpartition("/")[0]

    @property
    def model(self) -> str:
        """Where a run's trained players are: pretrained:NAME if they come with the library, else its workdir."""
        return _shipped().get(bare(self.line), self.folder)

    @property
    def line(self) -> str:
        """The command as it is typed and kept, without a folder of data."""
        return shlex.join(["python", *self.command()])

    def command(self, data_dirs: Mapping[str, str] = {}) -> list[str]:
        """Return script and flags, with the data folder if given."""
        given = [f"--data-dir={data_dirs[self.dataset]}"] if self.dataset in data_dirs else []
        return [self.script, *self.flags, *given]


@functools.cache
def _shipped() -> dict[str, str]:
    """Return training command -> pretrained:NAME."""
    commands = {f"{shipped.PREFIX}{name}": shipped.card(name)["command"] for name in shipped.PRETRAINED}
    return {bare(command): name for name, command in commands.items()}


def bare(command: str) -> str:
    """Return a command without its output file and its data's folder, which leave a result as it is."""
    return re.sub(r" (')?--(out|data-dir)=(?(1)[^']*'|\S+)", "", command)


class Part(NamedTuple):
    """Some columns of one row, for models of one seed."""

    table: str
    row: str
    jobs: tuple[Job, ...]
    """Jobs in order; the last one's result has the columns."""
    columns: Mapping[str, str] = {}
    """Column -> its name there: an attack's name, for an evaluation. Empty: the job keeps its own JSON."""
    seed: int = 0
    victim: Job | None = None
    """The training run behind the columns."""

    @property
    def needed(self) -> list[Job]:
        """The jobs, without the training of models that come with the library."""
        return [job for job in self.jobs if job.model == job.folder or job == self.jobs[-1]]


def effort_of(parts: Iterable[Part]) -> Effort:
    """Return the effort of all jobs of the parts, of those they share once."""
    return sum((job.effort for job in {job.made: job for part in parts for job in part.needed}.values()), Effort())


def trained(
    recipe: str, dataset: str, arch: str, method: str, epochs: int, seed: int = 0, *flags: str, variant: str = "",
    width: int | None = None,
) -> Job:  # fmt: skip
    """Return a training run; `variant` distinguishes its folder from that of other flags. Its own report is short."""
    name = "-".join(filter(None, [dataset, arch, method, variant, f"{epochs}epochs", f"s{seed}"]))
    settings = {key: str(value) for key, value in recipes.find(dataset, method, recipe).options.items()}
    settings |= dict(re.findall(r"\b(steps|awp|attacker|clean_weight)=(\w[\w.]*)", " ".join(flags)))
    work = effort.training(
        dataset, arch, method, epochs=epochs, width=width, attacker=settings.get("attacker", "wide"),
        steps=int(settings["steps"]) if "steps" in settings else None, awp=float(settings.get("awp", 0)),
        mixed=float(settings.get("clean_weight", 0)) > 0,
    )  # fmt: skip
    sized = [f"--attacker-width={width}"] * (width is not None)
    fixed = (f"--recipe={recipe}", f"--method={method}", f"--arch={arch}", f"--epochs={epochs}", f"--seed={seed}")
    return Job(
        f"experiments/{dataset}.py",
        (*fixed, *flags, *sized, "--attacks=pgd10", "--eval-size=1000", f"--workdir=runs/{name}"),
        f"runs/{name}/report.json",
        work,
        dataset,
        {"method": method, "dataset": dataset, "arch": arch, "epochs": epochs, "seed": seed},
    )


def judged(victim: Job, attacks: list[str], images: int, *flags: str, variant: str = "white") -> Job:
    """Return an evaluation of a trained model on the first test images, in a folder next to it."""
    out = f"{victim.folder}/judged-{variant}-{images}"
    fixed = (f"--victim={victim.model}", f"--attacks={','.join(attacks)}", f"--eval-size={images}", "--no-masking")
    work = effort.judging(str(victim.about["arch"]), attacks, images)
    made = f"{out}/robustbench.json"
    return Job("experiments/evaluate.py", (*fixed, *flags, f"--out={out}"), made, work, victim.dataset)


def attacker(
    name: str, victim: Job, *flags: str, epochs: int = 4, width: int | None = None, beside: str = "pgd10@l2l_da",
    seed: int = 0,
) -> Job:  # fmt: skip
    """Return a learned attacker trained on a fixed model (4 epochs of MNIST: 1,876 steps), compared with PGD.

    Attackers of one model differ by a point or two, so all test images are attacked.
    """
    folder = f"runs/attack-{name}-{victim.folder.removeprefix('runs/')}" + f"-attack-s{seed}" * (seed > 0)
    dataset, arch = str(victim.about["dataset"]), str(victim.about["arch"])
    method = name if name in effort.PASSES else "l2l_star"  # AdvGAN and GAP are one-shot networks too
    sized = [f"--attacker-width={width}"] * (width is not None) + [f"--seed={seed}"] * (seed > 0)
    fixed = (f"--attacker={name}", f"--victim={victim.model}", f"--epochs={epochs}")
    judging = (f"--attacks={beside}", "--draws=1", "--eval-size=10000", f"--workdir={folder}")
    return Job(
        "experiments/attack.py",
        (*fixed, *sized, *flags, *judging),
        f"{folder}/report.json",
        effort.training(dataset, arch, method, epochs=epochs, width=width),
        dataset,
        {"seed": seed, "method": name, "epochs": epochs, "eval_size": 10_000},
    )


def white(
    table: str, row: str, victim: Job, columns: Mapping[str, str], images: int, *before: Job,
    variant: str = "white", natural: bool = False,
) -> Part:  # fmt: skip
    """Return the part that evaluates `victim` on those columns, after `before` ran."""
    job = judged(victim, list(columns.values()), images, variant=variant)
    named = {**({"Natural": "clean"} if natural else {}), **columns}
    return Part(table, row, (victim, *before, job), named, int(str(victim.about["seed"])), victim)


def black(
    table: str, row: str, victim: Job, surrogates: Mapping[str, Job], attacks: Mapping[str, str], *before: Job,
    variant: str = "black",
) -> Part:  # fmt: skip
    """Return attacks on other models, tested on `victim`; a column's name joins the surrogate's and the attack's."""
    listed = ",".join(job.model for job in surrogates.values())
    flags = (f"--surrogates={listed}", f"--black-box={','.join(attacks.values())}")
    work = effort.judging(str(victim.about["arch"]), [*attacks.values()] * len(surrogates), 1000)
    job = judged(victim, [], 1000, *flags, variant=variant)._replace(effort=work)
    pairs = [(*surrogate, *attack) for surrogate in surrogates.items() for attack in attacks.items()]
    columns = {who + column: f"{name} on {other.model}" for who, other, column, name in pairs}
    jobs = (victim, *surrogates.values(), *before, job)
    return Part(table, row, jobs, columns, int(str(victim.about["seed"])), victim)


NEUTRAL = {"pgd100": "pgd100", "margin100": "margin100"}
"""In addition to every row's own attacks: two more for all papers, and AutoAttack."""
AUTOATTACK = {"AutoAttack": "standard"}
FAST = {"AutoAttack, fast": "fast"}


def kept(
    table: str, row: str, name: str, script: str, *flags: str, before: tuple[Job, ...] = (), dataset: str = ""
) -> Part:
    """Return a script that writes experiments/results/NAME.json itself."""
    job = Job(f"experiments/{script}.py", flags, f"{RESULTS}/{name}.json", dataset=dataset)
    return Part(table, row, (*before, job))
