"""L2L v1, Figure 6, answered: whether GAIL loses its return late, and whether a learned updater steadies it.

gail.answers("CartPole-v1", Path("experiments/results"))
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from papers.evidence import Answer, Group, Sides, exceeds

__all__ = ["AFTER", "UPDATERS", "answers"]

UPDATERS = {
    "l2l_dense": "L2L's updater, the paper's network and rate, 0.01,",
    "l2l_dense_lr1e-6": "L2L's updater, the paper's network, our rate 1e-6,",
    "l2l_dense_lr1e-7": "L2L's updater, the paper's network, our rate 1e-7,",
    "l2l_coordinate": "an updater per coordinate",
}
"""Arm of experiments/gail.py -> what."""
AFTER = "after it first has 95 % of the expert's"
"""Our own window for the lowest return; the paper's `late` is taken to be the second half."""
_PAPER = ("CartPole-v1", "MountainCar-v0")


class _Arm(NamedTuple):
    """One arm of a kept run."""

    numbers: Mapping[str, Any]
    run: Mapping[str, Any]


def answers(environment: str, results: Path) -> list[Answer]:
    """Return the answers on a task: late as in the paper, and from the first good return on, which is ours."""
    paths = [results / f"gail_figure6_{environment}{kind}.json" for kind in ("", "_printed", "_dense")]
    made = [json.loads(path.read_text()) for path in paths if path.exists()]
    arms = {name: _Arm(numbers, run) for run in made for name, numbers in run["arms"].items()}
    iterations = next((run["iterations"] for run in made), 1000)
    of = "L2L Fig. 6" if environment in _PAPER else "ours, as L2L Fig. 6"
    place = f"{environment}, {iterations:,} iterations"
    windows = {"lowest_late": f"in iterations {iterations // 2 + 1:,} to {iterations:,}", "lowest_after": AFTER}
    lowest = lambda name, window: _lowest(environment, arms, name, window)
    adam = lowest("adam", "lowest_late")
    final = [r - abs(r) / 10 for r in arms["adam"].numbers.get("final_return", [])] if "adam" in arms else []
    below = adam._replace(name="a tenth below the final return", values=final, bound=True)
    where = f"{place}, lowest mean of 20 {windows['lowest_late']}"
    said = [exceeds(of, "GAIL with Adam drops late, by a tenth", Sides(where, below, adam))]
    for name, form in UPDATERS.items():
        if name == "l2l_dense" and environment not in _PAPER:
            continue
        whose = "ours" if name == "l2l_coordinate" else of
        if name in arms and (why := arms[name].numbers.get("diverged")):
            said.append(Answer(whose, f"{form} steadies GAIL", place, "no", why.partition(":")[0], seeds=1))
            continue
        for window, when in windows.items():
            where = f"{place}, lowest mean of 20 {when}{_unlike(arms, name)}"
            sides = Sides(where, lowest(name, window), lowest("adam", window))
            said.append(exceeds(whose if window == "lowest_late" else "ours", f"{form} steadies GAIL", sides))
    return said


def _lowest(environment: str, arms: Mapping[str, _Arm], name: str, window: str) -> Group:
    """Return the numbers of an arm that ran as long as Adam's, of the seeds that have one."""
    given = arms[name].numbers.get(window, []) if name in arms else []
    alike = len({arms[each].run["iterations"] for each in (name, "adam") if each in arms}) == 1
    values = [value for value in given if value is not None and alike]
    shown = name if len(values) == len(given) else f"{name} ({len(values)} of {len(given)} seeds)"
    return Group(shown, values, row=(f"gail {environment}", name))


def _unlike(arms: Mapping[str, _Arm], name: str) -> str:
    """Return that an arm has other demonstrations than Adam's, if it was run apart from it."""
    if not {name, "adam"} <= arms.keys() or arms[name].run is arms["adam"].run:
        return ""
    theirs, adams = (
        f"{run['expert_return']:.1f}, {run['expert_pairs']} pairs" for run in (arms[name].run, arms["adam"].run)
    )
    return f"; demonstrations of another run ({theirs}) than Adam's ({adams})"
