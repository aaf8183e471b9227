"""Reports of runs: Markdown tables, report.json, report.md and index.html; `figures` draws them.

    write(workdir, result, [workdir / "training.png"])
    print(table([result, another]))

A result is the content of report.json: a mapping with method, dataset, arch, eps (as given, like "8/255"), norm, seed,
epochs, eval_size, clean_acc, attacks {name: {robust_acc, seconds, passes}}, worst_case_acc (None without attacks),
train_seconds, parameters {player: count}, versions {package: version}, command, and possibly best {clean_acc, attacks,
worst_case_acc}, for the best parameters on validation data, and raw, likewise, for the weights whose average the other
rows are of. Accuracies are fractions. A failed write raises an `L2LError` and leaves the earlier file unchanged.
"""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from l2ljax.files import write_files
from l2ljax.report import html
from l2ljax.threat import parse_eps

__all__ = ["CAPTIONS", "grid", "judgement", "over_seeds", "page", "percent", "shown", "summary", "table", "write"]

CAPTIONS = {
    "training": "Loss and accuracies in training: running means over batches (clean: in evaluation mode where the "
    "attack starts; robust: in training mode where it ends), and the accuracies where the best parameters are chosen.",
    "perturbations": "Images, their perturbations around gray, and what the classifier sees in them (red: wrong).",
    "sweep": "Accuracy under attack against the attack's radius and steps.",
    "losses": "How attacks raise the loss step by step.",
    "landscape": "The loss around the images, along the steepest and a random direction.",
    "curves": "Returns in training, averaged over the last iterations.",
}
"""Name of a figure -> its caption."""
CHECKLIST = {
    "one-step attacks are not better than iterative ones": "several steps are not weaker than one",
    "black-box attacks are not better than white-box ones": "the black box is not stronger than the white box",
    "unbounded attacks reach 100 %": "no accuracy is left in any radius",
    "random sampling finds nothing that gradients do not": "random search is not stronger than the gradient",
    "more distortion means more success": "a larger radius is not weaker",
    "the attacks have converged": "the attack has converged",
    "no randomness, no dynamic inference": "inference is one fixed program",
}
"""A point of L2L's appendix E -> the masking check that answers it."""


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a GitHub-Markdown table of accuracies in percent: a row per result, and one each for its `best` and `raw`.

    The columns are the clean accuracy, each attack in order of first appearance over all results, and the worst case
    over a result's own attacks; `-` if a result lacks one.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for result in results:
        rows.append((result["method"], result))
        if result.get("best"):
            chosen = result.get("selection", "validation")  # which older reports lack
            rows.append((f"{result['method']} (best on {chosen})", result["best"]))
        if result.get("raw"):
            rows.append((f"{result['method']} (not averaged)", result["raw"]))
    names = list(dict.fromkeys(name for _, row in rows for name in row["attacks"]))

    def cells(title: str, row: Mapping[str, Any]) -> list[str]:
        title += ", which predicts one class" * (row.get("classes_predicted") == 1)
        robust = [row["attacks"].get(name, {}).get("robust_acc") for name in names]
        return [title, *map(percent, [row["clean_acc"], *robust, row["worst_case_acc"]])]

    return grid(["method", "clean", *names, "worst case"], [cells(*row) for row in rows])


def page(result: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """Return the report.md of one result. `figures` are links relative to the report's folder."""
    p, n, eps = result["worst_case_acc"], result["eval_size"], f"{parse_eps(result['eps']):.4g}"
    error = "" if p is None else f", standard error of the worst case {percent(math.sqrt(p * (1 - p) / n))} points"
    eps = f"{result['eps']} ({eps})" if "/" in str(result["eps"]) else eps
    costs = [[name, _number(a["seconds"]), _number(a["passes"])] for name, a in result["attacks"].items()]
    parts = [
        f"# {result['method']}: {result['arch']} on {result['dataset']}",
        table([result]),
        f"- Threat model: {result['norm']}, eps = {eps}\n"
        f"- Evaluation: {n:,} images{error}\n"
        f"- Training: {_recipe(result)}{result['epochs']:.4g} epochs{_ended(result)}, seed {result['seed']}, "
        f"{result['train_seconds']:,.1f} s\n"
        f"- Parameters: {', '.join(f'{who} {count:,}' for who, count in result['parameters'].items())}\n"
        f"- Versions: {', '.join(f'{name} {version}' for name, version in result['versions'].items())}",
        grid(["attack", "seconds", "passes"], costs),
        f"```\n{result['command']}\n```",
        *map(shown, figures),
    ]
    return "\n\n".join(parts) + "\n"


def _ended(result: Mapping[str, Any]) -> str:
    step = result.get("ended_at")
    return f", ended at step {step:,} by catastrophic overfitting" if step else ""


def _recipe(result: Mapping[str, Any]) -> str:
    """Return the recipe, its ingredients and who moves, which older reports lack."""
    if "training" not in result:
        return ""
    return f"recipe {result['recipe']} ({result['training']}), {result['schedule']} updates, "


def write(workdir: Path, result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
    """Write report.json, report.md and index.html, all completely, or keep the earlier ones.

    Args:
      workdir: the run's folder, created if needed.
      result: see the module's docstring; NumPy and JAX scalars are fine.
      figures: paths of images; those that exist are shown.
    """
    links = [Path(os.path.relpath(f, workdir)).as_posix() for f in figures if Path(f).exists()]
    content = json.dumps(result, indent=2, default=lambda scalar: scalar.item()) + "\n"
    text = page(result, links)
    texts = {"report.json": content, "report.md": text, "index.html": html.page(text)}
    write_files({Path(workdir, name): text.encode() for name, text in texts.items()})


def shown(figure: str) -> str:
    """Return the link of an image with its caption below."""
    name = Path(figure).stem
    return f"![{name.replace('_', ' ')}]({quote(figure)})\n\n*{CAPTIONS.get(name, name.replace('_', ' '))}*"


def judgement(result: Mapping[str, Any], checks: Sequence[Any], drawn: Sequence[Path] = ()) -> str:
    """Return `judge.run`'s result in Markdown: attacks, masking checks (name, verdict, figure), the answers to L2L's
    appendix E."""
    known = result["provenance"]
    rows = [[name, f"{100 * accuracy:.2f}"] for name, accuracy in known["attacks"].items()]
    parts = [
        f"# {result['name']}: {result['architecture']} on {result['dataset']}",
        f"Threat: {known['norm']}, eps = {result['eps']} ({known['eps_value']:.5f}), images in [0, 1]; white box, the "
        f"attacks know weights and defense. {known['images']:,} test images, attack seeds {known['seeds']} (an image "
        "counts as fooled if one seed fools it).",
        grid(["attack", "accuracy %"], [["none", result["clean_acc"]], *rows]),
    ]
    if known["black_box"]:
        names = list(next(iter(known["black_box"].values())))
        cells = [[who, *(percent(row[name]) for name in names)] for who, row in known["black_box"].items()]
        parts += ["## Black box: accuracy % under attacks on other models", grid(["surrogate", *names], cells)]
    if checks:
        rows = [[c.name, c.verdict, c.figure] for c in checks]
        parts += ["## Masked gradients?", grid(["a sound model", "verdict", "measured"], rows)]
        found = {check.name: f"{check.verdict} ({check.figure})" for check in checks}
        missing = f"not checked: no attack for it in {known['norm']} balls"
        points = [f"- {point}: {found.get(name, missing)}" for point, name in CHECKLIST.items()]
        points.append(f"- a diverse set of attacks, clean accuracy reported: {', '.join(known['attacks'])} above")
        parts += ["## Checklist (Learning to Defend by Learning to Attack, appendix E)", "\n".join(points)]
    parts += [shown(path.name) for path in drawn]
    parts.append(f"```\n{known['command']}\n```")
    return "\n\n".join(parts) + "\n"


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean, lowest and standard deviation over the reports of several seeds: clean, each attack, worst case.

    The accuracies are those of the last parameters; the deviation is a sample's, 0 for a single run.
    """
    values: dict[str, list[float]] = {"clean": [run["clean_acc"] for run in runs]}
    for run in runs:
        for name, row in run["attacks"].items():
            values.setdefault(name, []).append(row["robust_acc"])
    if worst := [run["worst_case_acc"] for run in runs if run["worst_case_acc"] is not None]:
        values["worst case"] = worst
    deviation = lambda record: statistics.stdev(record) if len(record) > 1 else 0.0
    return {
        name: {"mean": statistics.fmean(record), "lowest": min(record), "deviation": deviation(record)}
        for name, record in values.items()
    }


def over_seeds(record: Mapping[str, Any]) -> str:
    """Return runs over seeds (--seeds, experiments/ablation.py) in Markdown: mean ± standard deviation (lowest).

    The accuracies are those of the last parameters, in percent.
    """
    known = {title: summary(runs) for title, runs in record["rows"].items()}
    names = [name for name in dict.fromkeys(name for row in known.values() for name in row) if name != "worst case"]

    def cell(row: Mapping[str, float] | None) -> str:
        if row is None:
            return "-"
        return f"{percent(row['mean'])} ± {percent(row['deviation'])} ({percent(row['lowest'])})"

    def ended(title: str) -> str:
        count = sum("ended_at" in run for run in record["rows"][title])
        return f", {count} ended by catastrophic overfitting" * bool(count)

    names.append("worst case")
    rows = [
        [title + ended(title), f"{len(record['rows'][title])}", *(cell(row.get(name)) for name in names)]
        for title, row in known.items()
    ]
    runs = [row[0] for row in record["rows"].values()]
    each = lambda name: "/".join(dict.fromkeys(f"{run[name]:.4g}" if name == "epochs" else run[name] for run in runs))
    about = f"{each('dataset')}, {each('arch')}, {each('norm')} eps {each('eps')}, {each('epochs')} epochs, "
    about += f"{runs[0]['eval_size']} test images: mean ± standard deviation over seeds (lowest)."
    return f"{about}\n\n{grid(['setting', 'seeds', *names], rows)}"


def percent(accuracy: float | None) -> str:
    """Format a fraction in percent, without the sign; - for None."""
    return "-" if accuracy is None else f"{100 * accuracy:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a GitHub-Markdown table, aligned in its source too: the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(line, [header, rule, *rows]))
