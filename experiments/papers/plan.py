"""The runs for the papers' tables: the models of their rows, and the list of parts, sized for two CPU cores.

    for part in PARTS: ...          # by the gain per minute

If a schedule is shorter than the paper's, the result says so, from the run's own settings (see `compare.shortened`).
"""

from collections.abc import Mapping

from papers import effort, equal
from papers.jobs import AUTOATTACK, FAST, NEUTRAL, RESULTS, Job, Part, attacker, black, judged, kept, trained, white

__all__ = [
    "AS_PRINTED", "DA_COLUMNS", "DA_MODELS", "DA_SURROGATES", "L2L_ROWS", "PARTS", "RNN_ROWS", "SMALL_METHODS", "TASKS",
    "cifar", "da_black", "da_tuned", "da_white", "equal_steps", "l2l_figure", "l2l_table2", "l2l_table4", "lenet",
    "mnist", "rnn_attacker", "rnn_figure3", "rnn_table3", "strength",
]  # fmt: skip

# Improved Adversarial Training via Learned Optimizer -----------------------------------------------------------------

RNN_ROWS = {
    "Plain": "plain", "AdvTrain": "pgd_adv", "TRADES": "trades", "L2LDA": "l2l_da", "RNN-Adv": "rnn_adv",
    "RNN-TRADES": "rnn_trades",
}  # fmt: skip
AS_PRINTED = "RNN-Adv, as printed"
"""Eq. 6 without our scales, at the budget of the other rows."""
SMALL_METHODS = {**RNN_ROWS, "AdvTrain+BLS": "pgd_bls_adv", AS_PRINTED: "rnn_adv"}
"""Row -> method of all small_cnn models."""
SMALL_CNN = ("--batch-size=256", "--lr=0.003", "--lr-schedule=onecycle", "--ema=0.999")
"""Flags of all small_cnn models but the generator's."""
ATTACKS = {
    "AdvTrain": ("--options=steps=7,step_size=0.08",), "RNN-Adv": ("--steps=7",),
    "TRADES": ("--options=steps=5,step_size=0.1,beta=6",), "RNN-TRADES": ("--steps=5", "--options=beta=6"),
    "AdvTrain+BLS": ("--steps=7",), AS_PRINTED: ("--options=steps=7,scale=3.3333,normalize=none",),
}  # fmt: skip
"""Flags of their attacks in training: fewer steps than the papers' 10, the same number for a learned one as by hand."""
SMALL_DA = (
    "--batch-size=50", "--warmup=0.2", "--optimizer=adam", "--lr=0.001", "--lr-schedule=cosine", "--ema=0.999",
    "--attacker-optimizer=adam", "--attacker-lr=0.001", "--val-size=0",
)  # fmt: skip
"""Flags of all lenet5 models, and of all with L2L-DA's generator: 6,000 small steps in 5 epochs, the
first 240 plain. The recipe is `ours`: with the random crops of the paper's, lenet5 is right on 8 % of the generator's
images in steps 601 to 800, without them on 47 %, with its clipping alone on 36 %."""
FIVE = "steps=5,step=0.5"
"""The recursion of these generators: as far in all as the paper's 10 steps of 0.25 eps, in half of the time."""


def mnist(row: str, seed: int) -> Job:
    """Return the model of a row of RNN-Adv's Table 3."""
    if row == "L2LDA":
        return trained("ours", "mnist", "small_cnn", "l2l_da", 5, seed, *SMALL_DA, f"--options={FIVE}", width=8)
    flags, variant = ATTACKS.get(row, ()), "as-printed" if row == AS_PRINTED else ""
    return trained("ours", "mnist", "small_cnn", SMALL_METHODS[row], 12, seed, *SMALL_CNN, *flags, variant=variant)


def rnn_table3(row: str, seed: int, which: str) -> Part:
    """Return one of five groups of columns."""
    table, victim = "rnn_adv:table3", mnist(row, seed)
    if which == "paper":
        return white(table, row, victim, {"PGD-10": "pgd10@rnn", "PGD-100": "pgd100@rnn"}, 10_000, natural=True)
    if which == "rnn":
        return rnn_attacker(table, row, seed, "RNN-Adv", 10)
    if which == "neutral":
        return white(table, row, victim, {"CW100": "cw100", **NEUTRAL}, 1000)
    if which == "autoattack":
        return white(table, row, victim, AUTOATTACK, 1000, variant="autoattack")
    tuned = attacker("l2l_da", victim, width=8)
    return white(table, row, victim, {"L2LDA": f"trained:{tuned.folder}"}, 1000, tuned, variant="l2lda")


def rnn_attacker(table: str, row: str, seed: int, column: str, steps: int) -> Part:
    """Return a column under RNN-Adv's attacker, which is trained with 7 steps; with the paper's 10 it is weaker."""
    optimizer = mnist("RNN-Adv", 0)
    attack = {column: f"trained{steps}:{optimizer.model}"}
    return white(table, row, mnist(row, seed), attack, 10_000, optimizer, variant=f"rnn{steps}")


def rnn_figure3(row: str) -> Part:
    """Return the landscape of one model."""
    victim = mnist(row, 0)
    job = judged(victim, [], 100, "--figures=landscape", variant="landscape")
    jobs = (victim, job._replace(made=job.folder + "/landscape.json"))
    return Part("rnn_adv:figure3", row, jobs, {"largest loss": "largest loss"}, 0, victim)


def strength(name: str, victims: tuple[Job, ...], attackers: tuple[Job, ...]) -> tuple[str, ...]:
    """Return the flags of experiments/strength.py for those models."""
    named = {"victims": victims, "attackers": attackers}
    folders = (f"--{kind}={','.join(job.model for job in models)}" for kind, models in named.items())
    return (*folders, "--eval-size=500", f"--out={RESULTS}/{name}.json")


_OTHERS = {"Plain-Net": mnist("Plain", 1), "PGD-Net": mnist("AdvTrain", 1)}
CURVES = ("AdvTrain", "TRADES", "RNN-Adv", "RNN-TRADES")
_CURVED = tuple(mnist(row, 0) for row in CURVES)
_PRETRAINED = {row: job for row, job in zip(CURVES, _CURVED, strict=True) if job.model != job.folder}
_CURVE_OF_PRETRAINED = strength("strength_pretrained", (*_PRETRAINED.values(),), (mnist("RNN-Adv", 0),))
_CURVE = Job(
    "experiments/strength.py",
    strength("strength_rnn_adv", _CURVED, (mnist("RNN-Adv", 0), mnist("L2LDA", 0))),
    f"{RESULTS}/strength_rnn_adv.json",
    effort.judging("small_cnn", ["pgd300"], 2000),
    "mnist",
)

# Learning to Defend by Learning to Attack ----------------------------------------------------------------------------

L2L_ROWS = {
    "Plain": "plain", "PGM Net": "pgd_adv", "Naive L2L": "naive_l2l", "Grad-only L2L": "grad_only_l2l",
    "2-Step Grad-only": "two_step_grad_only_l2l", "Grad L2L": "grad_l2l", "2-Step L2L": "two_step_l2l",
    "AIT": "ait", "AIT+Grad L2L": "ait_l2l", "FGSM Net": "fgsm_adv",
}  # fmt: skip
L2L_COLUMNS = {"PGM-20": "pgd20@l2l", "PGM-100": "pgd100@l2l"}
INTERPOLATION = {
    "PGM-20": "pgd20@l2l_v2", "PGM-100": "pgd100@l2l_v2", "CW-20": "margin20@ait", "CW-100": "margin100@ait",
}  # fmt: skip
"""AIT's own evaluation."""
_BUDGET = (
    "--val-size=0", "--lr-schedule=onecycle", "--ema=0.999", "--batch-size=128", "--eps=0.031", "--schedule=joint",
)  # fmt: skip


def cifar(row: str, seed: int = 0) -> Job:
    """Return the model of a row of L2L's tables: resnet20, 10 epochs, slim attackers of width 16, 3 steps of PGM."""
    method = L2L_ROWS[row]
    learned = ("--attacker=slim",) if method in effort.GENERATORS else ()
    pgm = ("--options=steps=3,step_size=0.0155",) if method == "pgd_adv" else ()
    return trained(
        "l2l_v2" if "AIT" in row else "l2l", "cifar10", "resnet20", method, 10, seed, *_BUDGET, *learned, *pgm,
        width=16 if learned else None,
    )  # fmt: skip


def l2l_table2(row: str) -> list[Part]:
    """Return all columns of a row: its own attacks, AutoAttack, and outside of AIT the slow ones."""
    interpolated = row.startswith("AIT")
    table, victim = "l2l:table4-v2" if interpolated else "l2l:table2", cifar(row)
    own = {"own attacker": "own"} if L2L_ROWS[row] in effort.GENERATORS else {}
    columns = {**(INTERPOLATION if interpolated else L2L_COLUMNS), **NEUTRAL, **own}
    parts = [
        white(table, row, victim, columns, 1000, natural=True),
        white(table, row, victim, FAST, 1000, variant="fast"),
    ]
    slow = {"CW": "l2l_cw100", "Random": "random10000"}
    return parts if interpolated else [*parts, white(table, row, victim, slow, 100, variant="slow")]


def l2l_table4(row: str) -> Part:
    """Return black-box attacks from surrogates of another seed."""
    surrogates = {"Plain": cifar("Plain", 1), "FGSM": cifar("FGSM Net", 1), "PGM": cifar("PGM Net", 1)}
    attacks = {" FGSM": "fgsm", " PGM10": "pgd10@l2l"}
    return black("l2l:table4", "Plain Net" if row == "Plain" else row, cifar(row), surrogates, attacks)


def l2l_figure(table: str, row: str, figures: str) -> Part:
    """Return a figure of a model against PGM Net."""
    victim, baseline = cifar(row), cifar("PGM Net")
    beside = () if row == "PGM Net" else (f"--baseline={baseline.model}",)
    job = judged(victim, [], 500, f"--figures={figures}", *beside, variant=figures)
    job = job._replace(made=f"{job.folder}/{figures}.json", effort=effort.judging("resnet20", ["pgd400"], 1000))
    return Part(table, row, (victim, baseline, job), {figures: figures}, 0, victim)


# Adversarial Defense via Learning to Generate Diverse Attacks --------------------------------------------------------

DA_COLUMNS = {"FGSM": "fgsm", "PGD10": "pgd10@l2l_da", "PGD100": "pgd100@l2l_da", "CW100": "cw100", "CW1000": "cw1000"}
_MIXED = "--options=clean_weight=0.3333"
"""L2L-DA's own share of clean images."""
DA_MODELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "Plain": ("plain", "", ()),
    "FGSM": ("fgsm_adv", "", ()),
    "PGD10": ("pgd_adv", "mixed", (_MIXED,)),
    "PGD100": ("pgd_adv", "pgd100_mixed", ("--steps=100", _MIXED)),
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
"""Row -> method, suffix of the folder, flags; `lenet` makes the recursions shorter."""
_FULL = {"R+, D+": "L2L-DA", "delta+, y+": "L2L-DA"}


def lenet(row: str, seed: int = 0) -> Job:
    """Return the model of a row of L2L-DA's MNIST tables: 6,000 steps in 5 epochs, generators of width 8."""
    method, variant, flags = DA_MODELS[_FULL.get(row, row)]
    if method == "l2l_da" and not row.startswith("R-"):
        flags = (f"--options={','.join([FIVE, *(flag.removeprefix('--options=') for flag in flags)])}",)
    return trained(
        "ours", "mnist", "lenet5", method, 5, seed, *SMALL_DA, *flags, variant=variant,
        width=8 if method.startswith("l2l") else None,
    )  # fmt: skip


def da_white(table: str, row: str, columns: Mapping[str, str]) -> Part:
    """Return the attacks without training."""
    return white(table, row, lenet(row), columns, 1000, natural=True, variant=table.partition(":")[2])


def da_tuned(row: str, column: str, name: str) -> Part:
    """Return a column of Table 2 whose attacker is trained on the row's model."""
    victim = lenet(row)
    tuned = attacker(name, victim, width=8 if name == "l2l_da" else None)
    return white("l2l_da:table2-mnist", row, victim, {column: f"trained:{tuned.folder}"}, 1000, tuned, variant=name)


DA_SURROGATES = {"A": "Plain", "B": "FGSM", "C": "PGD10"}
"""Table 3's letters -> rows of the models on which its images are made."""


def da_black(victim: Job, row: str, letter: str, surrogate: Job, tuned: Job) -> Part:
    """Return three columns of Table 3; `tuned` is the attacker trained on the surrogate."""
    names = {"L2L-DA ": f"trained:{tuned.folder}", "PGD10 ": "pgd10@l2l_da", "PGD100 ": "pgd100@l2l_da"}
    columns = {column + letter: name for column, name in names.items()}
    return black("l2l_da:table3", row, victim, {"": surrogate}, columns, tuned, variant=f"black-{letter}")


# Learned attackers and PGD at equal steps ----------------------------------------------------------------------------


def equal_steps(
    row: str, name: str, victim: Job, pgd: str, *flags: str, epochs: int, width: int | None = None
) -> list[Part]:
    """Return attackers of three seeds trained on a fixed model, the same untrained, and PGD with as many steps."""
    tuned = [attacker(name, victim, *flags, epochs=epochs, width=width, beside=pgd, seed=seed) for seed in range(3)]
    columns = {"PGD": pgd, "untrained": "untrained", "trained": "mean draw"}
    return [Part("ours:attackers", row, (victim, job), columns, seed, victim) for seed, job in enumerate(tuned)]


# Scripts with a result of their own ----------------------------------------------------------------------------------

_KEPT = f"--out={RESULTS}"
_RNN_OPEN = ("--table=rnn", "--epochs=30", "--val-size=0", "--attacks=pgd100,own", _KEPT)
_METHODS = ("--table=methods", "--attacks=pgd100,apgd_t20,square500", _KEPT)
TASKS = {"CartPole-v1": ("l2l:figure6", 5), "MountainCar-v0": ("l2l:figure6", 5), "Acrobot-v1": ("ours:gail", 3)}
"""GAIL's task -> the table of its rows, and the number of seeds."""
_DENSE = ("--iterations=1000", "--seeds=3", "--controls=none", "--together=1", "--checkpoint-every=500")
"""Flags for the paper's network, which takes 5 GB, and 10 to 30 minutes a seed."""
_L2L_COSTS = (
    "--model=wrn_34_10", "--batch-sizes=8", "--repeats=5", f"--out={RESULTS}/costs_wrn_34_10.json",
    "--train=plain,pgd_adv,naive_l2l,naive_l2l:alternating,grad_l2l,grad_l2l:alternating,two_step_l2l,"
    "two_step_l2l:alternating",
)  # fmt: skip
_RNN_COSTS = (
    "--model=resnet20", "--batch-sizes=32", "--train=plain,pgd_adv,rnn_adv,rnn_trades,l2l_da", "--repeats=3",
    f"--out={RESULTS}/costs_resnet20.json",
)  # fmt: skip
_STRONG = (lenet("PGD10"), lenet("L2L-DA"), lenet("L2L*"))
_STRENGTH = strength("strength", _STRONG[:2], _STRONG[1:])


def _gail(environment: str) -> list[Part]:
    name, short = f"gail_figure6_{environment}", environment.partition("-")[0]
    table, seeds = TASKS[environment]
    arms = ("--updater=adam,ascent,l2l_coordinate", "--iterations=1000", f"--seeds={seeds}", "--controls=none")
    dense = lambda rates: ("--updater=l2l_dense", f"--lr={rates}", *_DENSE)
    runs = [("GAIL", name, arms), ("L2L by coordinate", name, arms), ("L2L", f"{name}_dense", dense("1e-6,1e-7"))]
    runs += [("L2L", f"{name}_printed", dense("0.01"))] * (table == "l2l:figure6")  # the paper's rate, on its tasks
    own = lambda file, flags: (f"--env={environment}", *flags, f"--out={RESULTS}/{file}.json")
    return [kept(table, f"{who}, {short}", file, "gail", *own(file, flags)) for who, file, flags in runs]


_WHITE = ("paper", "neutral", "rnn")
PARTS: tuple[Part, ...] = (
    kept("rnn_adv:open", "scale, gradient, learning rate of phi, w_t, biases", "digits_rnn", "ablation", *_RNN_OPEN),
    kept("rnn_adv:open", "phi frozen at its start", "digits_methods", "ablation", *_METHODS),
    kept("l2l:open", "slim, slim without the skip", "digits_slim", "ablation", "--table=slim", "--epochs=30", _KEPT),
    kept("l2l:figure8", "gradient steps", "cycle", "cycle", f"--out={RESULTS}/cycle.json"),
    *equal.PARTS,
    *(part for environment in TASKS for part in _gail(environment)),
    *(rnn_table3(row, 0, which) for row in ("RNN-Adv", "AdvTrain", "Plain") for which in _WHITE),
    *(rnn_table3(row, 0, which) for row in ("TRADES", "RNN-TRADES") for which in _WHITE),
    *equal_steps("RNN on AdvTrain", "rnn_adv", mnist("AdvTrain", 0), "pgd10@rnn", "--attacker-lr=0.01", epochs=1),
    *(rnn_figure3(row) for row in ("Plain", "AdvTrain", "TRADES", "RNN-Adv", "RNN-TRADES")),
    *(rnn_table3(AS_PRINTED, 0, which) for which in (*_WHITE, "autoattack")),
    *(rnn_table3(row, 1, which) for row in ("RNN-Adv", "AdvTrain") for which in _WHITE),
    *(rnn_table3(row, 2, which) for row in ("RNN-Adv", "AdvTrain") for which in _WHITE),
    *(rnn_table3(row, 0, "autoattack") for row in ("RNN-Adv", "AdvTrain", "Plain", "TRADES", "RNN-TRADES")),
    *(part for row in ("PGM Net", "Grad L2L", "2-Step L2L", "Naive L2L") for part in l2l_table2(row)[:2]),
    *(part for row in ("AIT", "AIT+Grad L2L", "Grad-only L2L", "2-Step Grad-only") for part in l2l_table2(row)[:2]),
    *(l2l_table2(row)[2] for row in ("PGM Net", "Grad L2L", "2-Step L2L", "Naive L2L")),
    *(da_white("l2l_da:table2-mnist", row, DA_COLUMNS | NEUTRAL) for row in ("Plain", "PGD10", "L2L-DA", "L2L*")),
    *(da_white("l2l_da:table1a", row, {k: DA_COLUMNS[k] for k in ("FGSM", "PGD100", "CW1000")} | NEUTRAL)
      for row in ("L2L*", "R-, D-", "R-, D+", "R+, D-", "R+, D+")),
    *(white("rnn_adv:table1", row, mnist(row, 0), {"PGD": "pgd10@rnn", "PGD+BLS": "bls10"}, 1000, variant="bls",
            natural=True)
      for row in ("AdvTrain", "AdvTrain+BLS")),
    *(rnn_table3("L2LDA", 0, which) for which in (*_WHITE, "autoattack")),
    *(kept("rnn_adv:figure2", row, "strength_pretrained", "strength", *_CURVE_OF_PRETRAINED, dataset="mnist")
      for row in _PRETRAINED),
    *(Part("rnn_adv:figure2", row, (*_CURVED, mnist("L2LDA", 0), _CURVE)) for row in CURVES),
    *(da_white("l2l_da:table2-mnist", row, DA_COLUMNS | NEUTRAL) for row in ("PGD100", "C&W100")),
    *(da_white("l2l_da:table1b", row, {k: DA_COLUMNS[k] for k in ("FGSM", "PGD100", "CW1000")} | NEUTRAL)
      for row in ("delta+, y+", "delta+, y-", "delta-, y+", "delta-, y-")),
    *(l2l_table4(row) for row in ("Plain", "PGM Net", "Grad L2L", "2-Step L2L", "Naive L2L")),
    *l2l_table2("Plain")[:2],
    *(l2l_figure("l2l:figure4", row, "sweep") for row in ("PGM Net", "Grad L2L", "2-Step L2L")),
    *(l2l_figure("l2l:figure9", row, "sweep") for row in ("PGM Net", "Grad L2L", "2-Step L2L")),
    *(l2l_figure("l2l:figure5", row, "perturbations") for row in ("PGM Net", "2-Step L2L")),
    *(rnn_attacker("rnn_adv:table6", row, 0, f"{n} steps", n) for row in RNN_ROWS for n in (7, 10, 40)),
    *(black("rnn_adv:table7", row, mnist(row, 0), _OTHERS, {"": "pgd10@rnn"})
      for row in ("AdvTrain", "TRADES", "L2LDA", "RNN-Adv", "RNN-TRADES")),
    *(white("l2l:table8", row, cifar(row), {"FGSM": "fgsm", "PGM-20": "pgd20@l2l"}, 1000, natural=True,
            variant="fgsm")
      for row in ("Naive L2L", "Grad L2L", "2-Step L2L")),
    *equal_steps("L2L-DA on PGD10", "l2l_da", lenet("PGD10"), "pgd10@l2l_da", epochs=4, width=8),
    *(da_tuned(row, column, name) for row in ("PGD10", "L2L-DA")
      for column, name in {"AdvGAN": "advgan", "GAP": "gap", "L2L-DA": "l2l_da"}.items()),
    *(da_black(lenet(row), row, letter, lenet(other, 1), attacker("l2l_da", lenet(other, 1), width=8))
      for letter, other in DA_SURROGATES.items()
      for row in ("Plain", "PGD10", "L2L-DA", "L2L*", "PGD100", "C&W100")),
    *(kept("l2l:table3", row, "costs_wrn_34_10", "throughput", *_L2L_COSTS)
      for row in ("Plain", "PGM Net", "Naive L2L", "Grad L2L", "2-Step L2L")),
    *(kept("rnn_adv:table2", row, "costs_resnet20", "throughput", *_RNN_COSTS)
      for row in ("RNN-Adv", "RNN-TRADES", "L2LDA")),
    *(kept("l2l_da:figure2", row, "strength", "strength", *_STRENGTH, before=_STRONG, dataset="mnist")
      for row in ("PGD classifier", "L2L-DA classifier")),
    *(rnn_table3(row, 0, "l2lda") for row in RNN_ROWS),
)  # fmt: skip
"""In order of the gain per minute; `work.work` goes down this list."""
