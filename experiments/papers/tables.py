"""The text of BENCHMARKS.md for each kept result, experiments/results/*.json (see experiments/reproduce.py).

`tell(record)` chooses the table by the result's keys.
"""

import re
from collections.abc import Mapping
from typing import Any

from l2ljax.gail import report
from l2ljax.report.markdown import grid, over_seeds
from papers import ablations, overview, speeds

__all__ = ["TABLES", "autoattack", "cycle", "strength", "tell", "traveller", "verdicts"]


def tell(record: Mapping[str, Any]) -> str:
    """Return any kept result in Markdown."""
    return next(say for key, say in TABLES.items() if key in record)(record)


def strength(record: Mapping[str, Any]) -> str:
    """Return experiments/strength.py in Markdown: mean over images of the largest loss and of the draws' deviation."""
    rows = []
    for victim, curves in record["panels"].items():
        for attack, curve in curves.items():
            losses = curve["largest"]
            shown = [losses[0], losses[1], losses[len(losses) // 2], losses[-1], curve["spread"][-1]]
            rows.append([victim, attack, *(f"{value:.3f}" for value in shown)])
    header = ["classifier", "attack", "clean loss", "largest loss after a step", "halfway", "at the end", "deviation"]
    return f"{record['eval_size']:,} test images.\n\n{grid(header, rows)}"


def autoattack(record: Mapping[str, Any]) -> str:
    """Return experiments/autoattack.py in Markdown: a row per seed with both verdicts, their difference, and times."""
    rounds = record["autoattack"]
    theirs = next(name for name in rounds[0]["robust"] if name != "ours")
    header, rows = ["seed", "robust, ours", "theirs", "verdicts that differ"], []
    header += ["seconds, ours", "theirs", "theirs / ours", "compiling, apart"] if "seconds" in rounds[0] else []
    for seed, row in enumerate(rounds):
        rows.append([f"{seed}", f"{row['robust']['ours']}", f"{row['robust'][theirs]}", f"{row['differing']}"])
        if "seconds" in row:
            ours, other = row["seconds"]["ours"], row["seconds"][theirs]
            rows[-1] += [f"{ours:.1f}", f"{other:.1f}", f"{other / ours:.2f}", f"{row['compile_seconds']:.1f}"]
    images = f"the first {record['images']:,} images of the test set followed by the training set"
    about = f"{record['about']}; {images}; {record['machine']}, {record['date']}"
    return f"{about}; theirs is {theirs}.\n\n{grid(header, rows)}"


def verdicts(record: Mapping[str, Any]) -> str:
    """Return experiments/fast.py in Markdown: a row per victim with both versions' robust images and passes."""
    header = ["victim", "images", "robust, standard, by seed", "fast", "verdicts that differ", "passes per image"]
    rows = []
    for name, row in record["verdicts"].items():
        robust = [", ".join(map(str, row[version]["robust"])) for version in ("standard", "fast")]
        passes = [sum(row[version]["passes"].values()) for version in ("standard", "fast")]
        differ = ", ".join(str(len(images)) for images in row["differing"])
        rows.append([name, f"{row['images']}", *robust, differ, "{:.0f} / {:.0f}".format(*passes)])
        rows[-1].append(f"{row['quotient']:.3f}")
    return f"{record['machine']}, {record['date']}.\n\n{grid([*header, 'fast / standard'], rows)}"


def cycle(record: Mapping[str, Any]) -> str:
    """Return experiments/cycle.py in Markdown: the players' final distances from the equilibrium, 1 at the start."""
    rows = [[name, f"{distance:.4f}"] for name, distance in record["distances"].items()]
    about = (
        f"min over x, max over y of x y from (1, 0): {record['steps']:,} steps of {record['step']:g} (1e-4 in the "
        "paper). Each moves gradient steps out by a factor sqrt(1 + step^2), so that the circle closes as they shrink; "
        "the learned attacker is y = phi x, whose phi ascends."
    )
    return f"{about}\n\n{grid(['players', 'distance from the equilibrium'], rows)}"


def traveller(record: Mapping[str, Any]) -> str:
    """Return experiments/traveller.py in Markdown: the learned attack against each rival, over the held-out victims.

    The losses are the largest on the path. Of the rivals that are no known attack, those with as many steps are shown.
    """
    cells = []
    shown = re.compile(r"traveller(\d+) / (a?pgd\d+|(annealed|untrained)\1), largest_loss")
    for name, row in record["summary"].items():
        if not shown.fullmatch(name):
            continue
        name, ratio, points = name.partition(",")[0], row["loss_ratio"], row["accuracy_points"]
        cells.append([
            name, f"{ratio['mean']:.3f} ({ratio['least']:.3f}-{ratio['largest']:.3f})",
            f"{points['mean']:+.2f} ({points['least']:+.2f} to {points['largest']:+.2f})",
        ])  # fmt: skip
    header = ["traveller / rival", "ratio of losses (range)", "accuracy, points (range)"]
    held, seen = (
        {victim["dataset"] for victim in victims} for victims in (record["held_out"].values(), record["learning"])
    )
    victims = f"{len(record['rows'])} victims that it never saw, on {', '.join(sorted(held))}"
    victims += f"; {', '.join(sorted(held - seen))} is new to it as a whole" * bool(held - seen)
    rivals = "annealedN is PGD whose steps shrink to 0, untrainedN the optimizer with random weights"
    rivals += ". A ratio is the mean over victims of the traveller's largest loss / the rival's"
    return f"{victims}; {rivals}. {record['machine']}, {record['date']}.\n\n{grid(header, cells)}"


def _over_seeds(record: Mapping[str, Any]) -> str:
    """Return experiments/ablation.py in Markdown, and the passes of the settings' training steps."""
    if all(", eps " in row for row in record["rows"]):
        return overview.by_radius(record)
    settings: dict[float, list[str]] = {}
    for row in record["rows"]:
        settings.setdefault(ablations.passes(row), []).append(f"`{row}`")
    listed = "; ".join(f"{passes:g} {', '.join(rows)}" for passes, rows in sorted(settings.items()))
    return (
        f"{over_seeds(record)}\n\nModels in their last state. The worst case is per image, right under every attack of "
        f"the row. Passes of a training step: {listed if len(settings) > 1 else f'{min(settings):g}'}."
    )


TABLES = {
    "held_out": traveller, "goals": speeds.goals, "rows": _over_seeds,
    "panels": strength, "autoattack": autoattack, "verdicts": verdicts, "scaling": speeds.scaling, "distances": cycle,
    "speed": speeds.speed, "results": speeds.throughput, "arms": report.markdown, "gail_speed": speeds.gail_speed,
}  # fmt: skip
"""Key of a result -> its table."""
