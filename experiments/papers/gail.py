"""L2L v1, Figure 6, answered: whether GAIL loses its return late, and whether a learned updater steadies it.

gail.answers("CartPole-v1", Path("experiments/results"))
"""

import json
from pathlib import Path

from papers.evidence import Answer, Group, Sides, exceeds

__all__ = ["UPDATERS", "WINDOWS", "answers"]

UPDATERS = {
    "l2l_dense_lr1e-6": "L2L's updater, the paper's network, our rate 1e-6,",
    "l2l_dense_lr1e-7": "L2L's updater, the paper's network, our rate 1e-7,",
    "l2l_coordinate": "an updater per coordinate",
}
"""Arm of experiments/gail.py -> what. With the paper's rate, 0.01, theta leaves all bounds within a few steps."""
WINDOWS = {
    "lowest_late": "in iterations {half:,} to {all:,}",
    "lowest_after": "after it first has 95 % of the expert's",
}
"""Two readings of `late`; the number is the lowest mean return of 20 iterations there."""
_PAPER = ("CartPole-v1", "MountainCar-v0")


def answers(environment: str, results: Path) -> list[Answer]:
    """Return the answers on a task."""
    paths = [results / f"gail_figure6_{environment}{kind}.json" for kind in ("", "_dense")]
    made = [json.loads(path.read_text()) for path in paths if path.exists()]
    arms = {name: arm for record in made for name, arm in record["arms"].items()}
    expert = {name: f"{r['expert_return']:.1f}, {r['expert_pairs']} pairs" for r in made for name in r["arms"]}
    iterations = next((record["iterations"] for record in made), 1000)
    final = [r - abs(r) / 10 for r in arms.get("adam", {}).get("final_return", [])]
    below, of = Group("a tenth below the final return", final, bound=True), "L2L Fig. 6"
    of = of if environment in _PAPER else f"ours, as {of}"
    said = []
    for name, form in UPDATERS.items():
        if why := arms.get(name, {}).get("diverged"):
            where = f"{environment}, {iterations:,} iterations"
            said.append(Answer(of, f"{form} steadies GAIL", where, "no", why.partition(":")[0], seeds=1))
    for window, when in WINDOWS.items():
        lowest = {name: Group(name, arms.get(name, {}).get(window, [])) for name in (*UPDATERS, "adam")}
        when = when.format(half=iterations // 2 + 1, all=iterations)
        where = f"{environment}, {iterations:,} iterations, lowest mean of 20 {when}"
        said.append(exceeds(of, "GAIL with Adam drops late, by a tenth", Sides(where, below, lowest["adam"])))
        for name, form in UPDATERS.items():
            if "diverged" not in arms.get(name, {}):
                place = where + _unlike(name, expert)
                whose = "ours" if name == "l2l_coordinate" else of
                said.append(exceeds(whose, f"{form} steadies GAIL", Sides(place, lowest[name], lowest["adam"])))
    return said


def _unlike(name: str, expert: dict[str, str]) -> str:
    """Return that an arm has other demonstrations than Adam's, if it was run apart from it."""
    if name == "l2l_coordinate" or not {name, "adam"} <= expert.keys():
        return ""
    return f"; demonstrations of another run ({expert[name]}) than Adam's ({expert['adam']})"
