"""What can be run of the papers' tables: models, each a training command of our scripts, and the parts of the rows.

    for part in PARTS: ...          # in the order of what a minute brings
    PARTS[0].jobs[0].command({"mnist": "/data/mnist"})

All of it is sized for two CPU cores: where a schedule is shorter than the paper's, the result says so, because it is
told from the run's own settings (see `compare.shortened`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from l2ljax.papers import effort
from l2ljax.papers.effort import Effort

RESULTS = "experiments/results"


class Job(NamedTuple):
    """One command. It is complete when the file `made` is there, which it writes last and whole."""

    script: str
    flags: tuple[str, ...]
    made: str
    """From the repository's root."""
    effort: Effort = Effort()
    dataset: str = ""
    """Whose --data-dir it takes."""
    about: Mapping[str, object] = {}
    """What report.json has to say, for a training run."""

    @property
    def folder(self) -> str:
        """The workdir of a run."""
        return self.made.rpartition("/")[0]

    def command(self, data_dirs: Mapping[str, str] = {}) -> list[str]:
        """Script and flags, with the place of the data where one is given."""
        given = [f"--data-dir={data_dirs[self.dataset]}"] if self.dataset in data_dirs else []
        return [self.script, *self.flags, *given]


class Part(NamedTuple):
    """Some columns of one row, of models of one seed."""

    table: str
    row: str
    jobs: tuple[Job, ...]
    """In order; what the last one made has the columns."""
    columns: Mapping[str, str] = {}
    """Column -> what it is called there: an attack's name, for a judgement. Empty: the job keeps its own JSON."""
    seed: int = 0
    victim: Job | None = None
    """The training run that the columns are about."""


def trained(
    dataset: str, arch: str, method: str, epochs: int, seed: int = 0, *flags: str, variant: str = "",
    images: int | None = None, width: int | None = None,
) -> Job:  # fmt: skip
    """A training run; `variant` tells its folder from that of other flags. Its own report is short."""
    name = "-".join(filter(None, [dataset, arch, method, variant, f"{epochs}epochs", f"s{seed}"]))
    sized = [f"--train-size={images}"] * (images is not None) + [f"--attacker-width={width}"] * (width is not None)
    fixed = (f"--method={method}", f"--arch={arch}", f"--epochs={epochs}", f"--seed={seed}")
    return Job(
        f"experiments/{dataset}.py",
        (*fixed, *flags, *sized, "--attacks=pgd10", "--eval-size=1000", f"--workdir=runs/{name}"),
        f"runs/{name}/report.json",
        effort.training(dataset, arch, method, epochs=epochs, images=images, width=width or 64),
        dataset,
        {"method": method, "dataset": dataset, "arch": arch, "epochs": epochs, "seed": seed},
    )


def judged(victim: Job, attacks: list[str], images: int, *flags: str, variant: str = "") -> Job:
    """A judgement of a trained model on the first test images, in a folder beside it."""
    arch, out = str(victim.about["arch"]), f"{victim.folder}/judged-{variant or 'white'}-{images}"
    return Job(
        "experiments/evaluate.py",
        (f"--victim={victim.folder}", f"--attacks={','.join(attacks)}", f"--eval-size={images}", "--no-masking",
         *flags, f"--out={out}"),
        f"{out}/robustbench.json",
        effort.judging(arch, attacks, images),
        victim.dataset,
    )  # fmt: skip


def attacker(name: str, victim: Job, *flags: str, epochs: int = 4, width: int = 16, images: int = 60_000) -> Job:
    """A learned attacker trained on a model that does not move (4 epochs of MNIST: 1,876 steps)."""
    folder = f"runs/attack-{name}-{victim.folder.removeprefix('runs/')}"
    dataset, arch = str(victim.about["dataset"]), str(victim.about["arch"])
    work = effort.training(dataset, arch, "l2l_da" if name == "l2l_da" else "l2l_star", epochs=epochs, width=width)
    wide = (f"--attacker-width={width}",) if name == "l2l_da" else ()
    return Job(
        "experiments/attack.py",
        (f"--attacker={name}", f"--victim={victim.folder}", f"--epochs={epochs}", *wide, *flags, "--draws=1",
         "--eval-size=1000", f"--workdir={folder}"),
        f"{folder}/report.json",
        work,
        victim.dataset,
        {"seed": 0, "method": name, "epochs": epochs},
    )  # fmt: skip


def white(
    table: str, row: str, victim: Job, columns: Mapping[str, str], images: int, *before: Job,
    variant: str = "", natural: bool = False,
) -> Part:  # fmt: skip
    """The part that judges `victim` on those columns, after `before` ran."""
    job = judged(victim, list(columns.values()), images, variant=variant)
    told = {**({"Natural": "clean"} if natural else {}), **columns}
    return Part(table, row, (victim, *before, job), told, int(str(victim.about["seed"])), victim)


NEUTRAL = {"pgd100": "pgd100", "margin100": "margin100"}
"""Beside every row's own attacks: the same two for all papers, and AutoAttack."""
AUTOATTACK = {"AutoAttack": "standard"}


# Improved Adversarial Training via Learned Optimizer -----------------------------------------------------------------

RNN_ROWS = {
    "Plain": "plain", "AdvTrain": "pgd_adv", "TRADES": "trades", "L2LDA": "l2l_da", "RNN-Adv": "rnn_adv",
    "RNN-TRADES": "rnn_trades",
}  # fmt: skip
# The generator takes 2 s a step; so 1,200 steps, with Adam because those are few.
SMALL_DA = (
    "--batch-size=100", "--warmup=1", "--optimizer=adam", "--lr=0.001", "--lr-schedule=constant",
    "--attacker-optimizer=adam", "--attacker-lr=0.001", "--val-size=0",
)  # fmt: skip


def mnist(row: str, seed: int) -> Job:
    """The model of a row of RNN-Adv's Table 3."""
    if row == "L2LDA":
        return trained("mnist", "small_cnn", "l2l_da", 6, seed, *SMALL_DA, variant="small", images=20_000, width=16)
    return trained("mnist", "small_cnn", RNN_ROWS[row], 6, seed)


def rnn_table3(row: str, seed: int, which: str) -> Part:
    """One of four groups of columns."""
    victim, optimizer = mnist(row, seed), mnist("RNN-Adv", 0)
    if which == "paper":
        own = f"trained:{optimizer.folder}"
        columns = {"PGD-10": "pgd10@rnn", "PGD-100": "pgd100@rnn", "RNN-Adv": own}
        return white("rnn_adv:table3", row, victim, columns, 10_000, optimizer, natural=True)
    if which == "neutral":
        return white("rnn_adv:table3", row, victim, {"CW100": "cw100", **NEUTRAL}, 1000)
    if which == "autoattack":
        return white("rnn_adv:table3", row, victim, AUTOATTACK, 1000, variant="autoattack")
    tuned = attacker("l2l_da", victim)
    return white("rnn_adv:table3", row, victim, {"L2LDA": f"trained:{tuned.folder}"}, 1000, tuned, variant="l2lda")


def rnn_table1(row: str, method: str) -> Part:
    """MNIST with and without the line search."""
    victim = trained("mnist", "small_cnn", method, 6)
    columns = {"PGD": "pgd10@rnn", "PGD+BLS": "bls10"}
    return white("rnn_adv:table1", row, victim, columns, 1000, variant="bls", natural=True)


LANDSCAPES = ("AdvTrain", "RNN-Adv")


def rnn_figure3(row: str) -> Part:
    """The landscape of one model."""
    victim = mnist(row, 0)
    job = judged(victim, [], 100, "--figures=landscape", variant="landscape")
    job = job._replace(made=job.folder + "/landscape.json")
    return Part("rnn_adv:figure3", row, (victim, job), {"largest loss": "largest loss"}, 0, victim)


CURVES = ("AdvTrain", "TRADES", "RNN-Adv", "RNN-TRADES")
_CURVED = tuple(mnist(row, 0) for row in CURVES)
_CURVE = Job(
    "experiments/strength.py",
    (
        f"--victims={','.join(job.folder for job in _CURVED)}",
        f"--attackers={mnist('RNN-Adv', 0).folder},{mnist('L2LDA', 0).folder}",
        "--eval-size=500",
        f"--out={RESULTS}/strength_rnn_adv.json",
    ),
    f"{RESULTS}/strength_rnn_adv.json",
    effort.judging("small_cnn", ["pgd300"], 2000),
)

# Learning to Defend by Learning to Attack ----------------------------------------------------------------------------

L2L_ROWS = {
    "Plain": "plain", "PGM Net": "pgd_adv", "Naive L2L": "naive_l2l", "Grad-only L2L": "grad_only_l2l",
    "2-Step Grad-only": "two_step_grad_only_l2l", "Grad L2L": "grad_l2l", "2-Step L2L": "two_step_l2l",
    "AIT": "ait", "AIT+Grad L2L": "ait_l2l", "FGSM Net": "fgsm_adv",
}  # fmt: skip
L2L_COLUMNS = {"PGM-20": "pgd20@l2l", "PGM-100": "pgd100@l2l"}
_BUDGET = (
    "--val-size=0", "--optimizer=adam", "--lr=0.002", "--lr-schedule=cosine", "--batch-size=50", "--eps=0.031",
)  # fmt: skip


def cifar(row: str, seed: int = 0, *, slim: bool = False) -> Job:
    """The stand-in of a row of L2L's tables: resnet20, 3 epochs of 10,000 images, attackers of width 16."""
    method = L2L_ROWS[row]
    width = None if method not in effort.GENERATORS else 32 if slim else 16
    flags = (*_BUDGET, "--attacker=slim") if slim else _BUDGET
    variant = "slim" if slim else "small"
    return trained("cifar10", "resnet20", method, 3, seed, *flags, variant=variant, images=10_000, width=width)


def l2l_table2(row: str) -> list[Part]:
    """All columns of a row."""
    table, victim = "l2l:table4-v2" if row.startswith("AIT") else "l2l:table2", cifar(row)
    margins = {"CW-20": "margin20", "CW-100": "margin100", "pgd100": "pgd100"}
    if row.startswith("AIT"):
        return [
            white(table, row, victim, {**L2L_COLUMNS, **margins}, 1000, natural=True),
            white(table, row, victim, AUTOATTACK, 200, variant="autoattack"),
        ]
    own = {"own attacker": "own"} if L2L_ROWS[row] in effort.GENERATORS else {}
    slow = {"CW": "l2l_cw100", "Random": "random10000"}
    return [
        white(table, row, victim, {**L2L_COLUMNS, **NEUTRAL, **own}, 1000, natural=True),
        white(table, row, victim, AUTOATTACK, 200, variant="autoattack"),
        white(table, row, victim, slow, 100, variant="slow"),
    ]


def l2l_table4(row: str) -> Part:
    """Black box: the surrogates are of another seed."""
    victim = cifar(row)
    surrogates = {"Plain": cifar("Plain", 1), "FGSM": cifar("FGSM Net", 1), "PGM": cifar("PGM Net", 1)}
    names = {"FGSM": "fgsm", "PGM10": "pgd10"}
    listed = ",".join(job.folder for job in surrogates.values())
    job = judged(victim, [], 1000, f"--surrogates={listed}", f"--black-box={','.join(names.values())}", variant="black")
    columns = {f"{s} {a}": f"{name} on {other.folder}" for s, other in surrogates.items() for a, name in names.items()}
    target = "Plain Net" if row == "Plain" else row
    jobs = (victim, *surrogates.values(), job._replace(effort=effort.judging("resnet20", ["pgd33"], 1000)))
    return Part("l2l:table4", target, jobs, columns, 0, victim)


def l2l_figures(row: str, figures: str, table: str) -> Part:
    """Figures of a model beside PGM Net's."""
    victim, baseline = cifar(row), cifar("PGM Net")
    beside = () if row == "PGM Net" else (f"--baseline={baseline.folder}",)
    job = judged(victim, [], 500, f"--figures={figures}", *beside, variant=figures)
    job = job._replace(made=f"{job.folder}/{figures}.json", effort=effort.judging("resnet20", ["pgd400"], 1000))
    return Part(table, row, (victim, baseline, job), {"drawn": figures}, 0, victim)


PLAIN_CIFAR = trained(
    "cifar10", "resnet20", "plain", 15, 0, "--optimizer=adam", "--lr=0.002", "--lr-schedule=cosine", variant="full"
)

# Adversarial Defense via Learning to Generate Diverse Attacks --------------------------------------------------------

DA_COLUMNS = {"FGSM": "fgsm", "PGD10": "pgd10@l2l_da", "PGD100": "pgd100@l2l_da", "CW100": "cw100", "CW1000": "cw1000"}
DA_MODELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "Plain": ("plain", "", ()),
    "FGSM": ("fgsm_adv", "", ()),
    "PGD10": ("pgd_adv", "", ()),
    "PGD100": ("pgd_adv", "pgd100", ("--steps=100",)),
    "C&W100": ("cw_adv", "", ()),
    "L2L*": ("l2l_star", "", ()),
    "L2L-DA": ("l2l_da", "", ()),
    "R-, D-": ("l2l_da", "one_shot", ("--options=steps=1,step=1.0,diversity=0.0",)),
    "R-, D+": ("l2l_da", "one_shot_diverse", ("--options=steps=1,step=1.0",)),
    "R+, D-": ("l2l_da", "not_diverse", ("--options=diversity=0.0",)),
    "delta+, y-": ("l2l_da", "no_label", ("--options=label=False",)),
    "delta-, y+": ("l2l_da", "no_delta", ("--options=delta=False",)),
    "delta-, y-": ("l2l_da", "no_delta_no_label", ("--options=delta=False,label=False",)),
}
"""Row -> method, what tells the folder apart, flags."""
_FULL = {"R+, D+": "L2L-DA", "delta+, y+": "L2L-DA"}


def lenet(row: str, seed: int = 0) -> Job:
    """The model of a row of L2L-DA's MNIST tables: 20,000 images, 6 epochs, the first plain, generators of width 16."""
    method, variant, flags = DA_MODELS[_FULL.get(row, row)]
    width = 16 if method.startswith("l2l") else None
    variant = "-".join(filter(None, ["small", variant]))
    return trained("mnist", "lenet5", method, 6, seed, *SMALL_DA, *flags, variant=variant, images=20_000, width=width)


def da_white(table: str, row: str, columns: Mapping[str, str]) -> Part:
    """The attacks without training."""
    return white(table, row, lenet(row), columns, 1000, natural=True, variant=table.partition(":")[2])


def da_tuned(row: str, column: str, name: str) -> Part:
    """A column of Table 2 whose attacker is trained on the row's model."""
    victim = lenet(row)
    tuned = attacker(name, victim, "--attacker-lr=0.001")
    columns = {column: f"trained:{tuned.folder}"}
    return white("l2l_da:table2-mnist", row, victim, columns, 1000, tuned, variant=name)


def da_black(row: str, letter: str, surrogate_row: str) -> Part:
    """Three columns of Table 3."""
    victim, surrogate = lenet(row), lenet(surrogate_row, 1)
    tuned = attacker("l2l_da", surrogate, "--attacker-lr=0.001")
    names = {"L2L-DA": f"trained:{tuned.folder}", "PGD10": "pgd10@l2l_da", "PGD100": "pgd100@l2l_da"}
    flags = (f"--surrogates={surrogate.folder}", f"--black-box={','.join(names.values())}")
    job = judged(victim, [], 1000, *flags, variant=f"black-{letter}")
    columns = {f"{column} {letter}": f"{name} on {surrogate.folder}" for column, name in names.items()}
    return Part("l2l_da:table3", row, (victim, surrogate, tuned, job), columns, 0, victim)


# What is kept by scripts of their own -------------------------------------------------------------------------------


def kept(table: str, row: str, name: str, script: str, *flags: str, before: tuple[Job, ...] = ()) -> Part:
    """A script that writes experiments/results/NAME.json itself."""
    return Part(table, row, (*before, Job(f"experiments/{script}.py", flags, f"{RESULTS}/{name}.json")))


_RNN_OPEN = ("--table=rnn", "--epochs=30", "--val-size=0", "--attacks=pgd100,own")
_GAIL = ("--updater=adam,ascent,l2l_coordinate", "--iterations=1000", "--seeds=5", "--controls=none")
_COSTS = ("--train=plain,pgd_adv,naive_l2l,grad_l2l,two_step_l2l,rnn_adv,l2l_da", "--batch-size=8", "--repeats=3")


def _gail(environment: str) -> list[Part]:
    name = f"gail_figure6_{environment}"
    flags = (f"--env={environment}", *_GAIL, f"--out={RESULTS}/{name}.json")
    short = environment.partition("-")[0]
    return [kept("l2l:figure6", f"{who}, {short}", name, "gail", *flags) for who in ("GAIL", "L2L")]


PARTS: tuple[Part, ...] = (
    kept("rnn_adv:open", "scale, gradient, learning rate of phi, w_t, biases", "digits_rnn", "ablation", *_RNN_OPEN),
    kept("rnn_adv:open", "phi frozen at its start", "digits_methods", "ablation", "--table=methods"),
    kept("l2l:open", "slim, slim without the skip", "digits_slim", "ablation", "--table=slim", "--epochs=30"),
    kept("l2l:figure8", "gradient steps", "cycle", "cycle", f"--out={RESULTS}/cycle.json"),
    *_gail("CartPole-v1"),
    *_gail("MountainCar-v0"),
    *(rnn_table3(row, 0, which) for row in ("RNN-Adv", "AdvTrain", "Plain") for which in ("paper", "neutral")),
    *(rnn_table3(row, 0, which) for row in ("TRADES", "RNN-TRADES") for which in ("paper", "neutral")),
    *(rnn_figure3(row) for row in LANDSCAPES),
    *(rnn_table3(row, 1, which) for row in ("RNN-Adv", "AdvTrain") for which in ("paper", "neutral")),
    *(rnn_table3(row, 2, which) for row in ("RNN-Adv", "AdvTrain") for which in ("paper", "neutral")),
    *(rnn_table3(row, 0, "autoattack") for row in ("RNN-Adv", "AdvTrain", "Plain", "TRADES", "RNN-TRADES")),
    *(part for row in ("PGM Net", "Grad L2L", "2-Step L2L", "Naive L2L") for part in l2l_table2(row)[:2]),
    *(part for row in ("AIT", "AIT+Grad L2L", "Grad-only L2L", "2-Step Grad-only") for part in l2l_table2(row)[:2]),
    *l2l_table2("Plain")[:2],
    *(l2l_table2(row)[2] for row in ("PGM Net", "Grad L2L", "2-Step L2L", "Naive L2L")),
    *(da_white("l2l_da:table2-mnist", row, DA_COLUMNS | NEUTRAL) for row in ("Plain", "PGD10", "L2L-DA", "L2L*")),
    *(da_white("l2l_da:table1a", row, {k: DA_COLUMNS[k] for k in ("FGSM", "PGD100", "CW1000")} | NEUTRAL)
      for row in ("L2L*", "R-, D-", "R-, D+", "R+, D-", "R+, D+")),
    *(rnn_table1(row, method) for row, method in {"AdvTrain": "pgd_adv", "AdvTrain+BLS": "pgd_bls_adv"}.items()),
    *(rnn_table3("L2LDA", 0, which) for which in ("paper", "neutral", "autoattack")),
    *(Part("rnn_adv:figure2", row, (*_CURVED, mnist("L2LDA", 0), _CURVE)) for row in CURVES),
    *(rnn_table3(row, seed, which) for seed in (1, 2) for row in ("TRADES", "RNN-TRADES")
      for which in ("paper", "neutral")),
    *(da_white("l2l_da:table2-mnist", row, DA_COLUMNS | NEUTRAL) for row in ("PGD100", "C&W100")),
    *(da_white("l2l_da:table1b", row, {k: DA_COLUMNS[k] for k in ("FGSM", "PGD100", "CW1000")} | NEUTRAL)
      for row in ("delta+, y+", "delta+, y-", "delta-, y+", "delta-, y-")),
    *(l2l_table4(row) for row in ("Plain", "PGM Net", "Grad L2L", "2-Step L2L", "Naive L2L")),
    *(l2l_figures(row, "perturbations", "l2l:figure5") for row in ("PGM Net", "2-Step L2L")),
)  # fmt: skip
"""In the order of what a minute brings; `work.work` goes down this list."""
