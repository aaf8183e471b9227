"""The tables' rows at their papers' own settings, for a machine that can pay them: one command a row.

    setting("rnn_adv:table4", "RNN-Adv").milestones      # (80, 140, 180)
    printed("rnn_adv:table4", "RNN-Adv").jobs[0].command()

`experiments/reproduce.py --printed --only=rnn_adv:table4/RNN-Adv --minutes=600 --data-dir=FOLDER` runs such a row.
"""

import functools
from typing import Any

from l2ljax.run import recipes
from l2ljax.run.config import Config, resolve
from l2ljax.run.settings import Settings
from papers import effort, plan, records
from papers.jobs import Job, Part, attacker, black, judged, white
from papers.targets import TABLES

__all__ = ["COLUMNS", "FIGURES", "METHODS", "model", "printed", "recipe_of", "setting"]

METHODS = {
    **plan.SMALL_METHODS, **plan.L2L_ROWS, **{row: method for row, (method, _, _) in plan.DA_MODELS.items()},
    "Plain Net": "plain", "Stability": "stability", "Kurakin": "fgsm_adv",
    "R+, D+": "l2l_da", "delta+, y+": "l2l_da", "PGD classifier": "pgd_adv", "L2L-DA classifier": "l2l_da",
}  # fmt: skip
"""Row of any table -> method."""
ABLATIONS = {
    row: {"options": flags[0].removeprefix("--options=")}
    for row, (method, _, flags) in plan.DA_MODELS.items()
    if method == "l2l_da" and flags
}
"""Flags of L2L-DA's rows besides its recipe's."""
SLIM = ("l2l:table4", "l2l:table5", "l2l:table8", "l2l:table8-cifar100")
"""Tables with slim attackers."""
BLACK = {
    "rnn_adv:table7": ({"Plain-Net": "Plain", "PGD-Net": "AdvTrain"}, {"": "pgd10@rnn"}),
    **dict.fromkeys(
        ("l2l:table4", "l2l:table5", "l2l:table6"),
        ({"Plain": "Plain Net", "FGSM": "FGSM Net", "PGM": "PGM Net"}, {" FGSM": "fgsm", " PGM10": "pgd10@l2l"}),
    ),
}  # fmt: skip
"""Tables of black-box attacks: surrogate -> its row, and attack -> name."""
COLUMNS = {
    "rnn_adv": {
        "PGD-10": "pgd10@rnn", "PGD-100": "pgd100@rnn", "CW100": "cw100", "PGD": "pgd10@rnn", "PGD+BLS": "bls10",
    },
    "l2l": {"FGSM": "fgsm", **plan.L2L_COLUMNS, "CW": "l2l_cw100", "Random": "random10000"},
    "l2l_v2": plan.INTERPOLATION,
    "l2l_da": plan.DA_COLUMNS,
}  # fmt: skip
"""Recipe -> column -> the attack's name."""
TUNED = {"L2LDA": "l2l_da", "L2L-DA": "l2l_da", "AdvGAN": "advgan", "GAP": "gap"}
"""Columns whose attacker is trained on the row's model."""
FIGURES = {
    "rnn_adv:figure3": "landscape", "l2l:figure4": "sweep", "l2l:figure9": "sweep", "l2l:figure5": "perturbations",
}  # fmt: skip
"""Figures of one model -> --figures of evaluate.py; the others are scripts of their own."""
IMAGES = 10_000


def recipe_of(table: str) -> str:
    """Return the recipe of a table's paper."""
    return "l2l_v2" if table == "l2l:table4-v2" else table.partition(":")[0]


@functools.cache
def setting(table: str, row: str) -> Settings | None:
    """Return the complete settings of a row's model in its paper; None if the row is no trained model."""
    printed, flags = TABLES[table], _flags(table, row)
    if flags is None or recipe_of(table) not in recipes.RECIPES:
        return None
    return resolve(printed.dataset, flags["method"], Config(**flags))


def _flags(table: str, row: str) -> dict[str, Any] | None:
    """Return the flags of the row's model, those of the recipe left out."""
    if not TABLES[table].arch or row not in METHODS:
        return None
    method, dataset = METHODS[row], TABLES[table].dataset
    flags: dict[str, Any] = {"recipe": recipe_of(table), "method": method, **ABLATIONS.get(row, {})}
    recipe = recipes.find(dataset, method, flags["recipe"])
    if recipe.arch != TABLES[table].arch:
        flags["arch"] = TABLES[table].arch
    if table in SLIM and method in effort.GENERATORS:
        flags["attacker"] = "slim"
    if row == "PGD100":  # 100 steps of eps / 12
        flags |= {"steps": 100, "options": f"step_size={recipe.ball.eps / 12:.6g}"}
    return flags


def model(table: str, row: str, seed: int = 0) -> Job:
    """Return the training of a row's model."""
    flags, settings = _flags(table, row), setting(table, row)
    assert flags is not None and settings is not None
    given = (*(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()), f"--seed={seed}")
    varied = "".join(f"-{value}" for name, value in flags.items() if name in ("attacker", "options", "steps"))
    varied = varied.replace(",", "-").replace("=", "")
    name = f"{settings.dataset}-{settings.arch}-{settings.method}-{settings.recipe}{varied}-s{seed}"
    folder = f"{records.PRINTED}{name}"
    options = settings.options
    work = effort.training(
        settings.dataset, settings.arch, settings.method, epochs=settings.epochs, width=options.get("attacker_width"),
        attacker=flags.get("attacker", "wide"), schedule=settings.schedule,
        steps=options.get("steps") if settings.method in effort.STEPS else None,
    )  # fmt: skip
    about = {name: getattr(settings, name) for name in ("recipe", "method", "dataset", "arch", "epochs")}
    return Job(
        f"experiments/{settings.dataset}.py", (*given, "--attacks=pgd10", f"--workdir={folder}"),
        f"{folder}/report.json", work, settings.dataset, {**about, "seed": seed},
    )  # fmt: skip


def printed(table: str, row: str) -> list[Part]:
    """Return the row's model and attacks as in the paper; nothing for scripts of their own and for times."""
    figure = FIGURES.get(table)
    if setting(table, row) is None or not (figure or (TABLES[table].unit == "%" and ":figure" not in table)):
        return []
    victim = model(table, row)
    if figure:
        job = judged(victim, [], 500, f"--figures={figure}", variant=figure)
        column = "largest loss" if figure == "landscape" else figure
        return [
            Part(table, row, (victim, job._replace(made=f"{job.folder}/{figure}.json")), {column: column}, 0, victim)
        ]
    if table in BLACK:
        surrogates, attacks = BLACK[table]
        others = {name: model(table, other, seed=1) for name, other in surrogates.items()}
        return [black(table, row, victim, others, attacks)]
    if table == "l2l_da:table3":
        others = {letter: model(table, other, seed=1) for letter, other in plan.DA_SURROGATES.items()}
        return [plan.da_black(victim, row, k, other, _tuned("l2l_da", other)) for k, other in others.items()]
    columns, before = {}, dict[str, Job]()
    wanted = TABLES[table].rows[row] or TABLES[table].columns  # all for a row of ours, without numbers
    for column in wanted:
        if (name := COLUMNS[recipe_of(table)].get(column)) is not None:
            columns[column] = name
        elif column == "own attacker" and victim.about["method"] in effort.GENERATORS:
            columns[column] = "own"
        elif column in ("RNN-Adv", "10 steps", "40 steps"):
            optimizer = model(table, "RNN-Adv")
            columns[column] = f"trained{'40' if column == '40 steps' else '10'}:{optimizer.model}"
            before[optimizer.made] = optimizer
        elif column in TUNED:
            tuned = _tuned(TUNED[column], victim)
            columns[column] = f"trained:{tuned.folder}"
            before[tuned.made] = tuned
    return [white(table, row, victim, columns, IMAGES, *before.values(), natural="Natural" in wanted)]


def _tuned(name: str, victim: Job) -> Job:
    """Return the attacker that L2L-DA's code trains for 48,000 steps on the frozen model, from its own if any."""
    begun = [f"--attacker-from={victim.model}"] * (victim.about["method"] == name)
    epochs = 48_000 * 100 // effort.TRAIN_IMAGES[victim.dataset]
    return attacker(name, victim, "--batch-size=100", *begun, epochs=epochs)
