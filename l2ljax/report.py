"""Reports of runs: tables in Markdown, report.json and report.md, training curves, image grids.

    training_curves(workdir / "curves.png", steps, validations)
    perturbation_grid(workdir / "examples.png", x, x_adv, labels, predictions, class_names)
    write(workdir, result, [workdir / "curves.png", workdir / "examples.png"])
    print(table([result, another]))

A result is the content of report.json: a mapping with method, dataset, arch, eps (as given, like "8/255"),
norm, seed, epochs, eval_size, clean_acc, attacks {name: {robust_acc, seconds, passes}}, worst_case_acc,
train_seconds, parameters {player: count}, versions {package: version}, command, and maybe best {clean_acc,
attacks, worst_case_acc}, of the parameters that were best on validation data. Accuracies are fractions.
What cannot be written raises an `L2LError` and leaves the earlier file as it was.
"""

import contextlib
import io
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import chex
import numpy as np
from numpy.typing import ArrayLike

from l2ljax.threat import parse_eps
from l2ljax.types import L2LError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, which colorblind readers can tell apart: blue is clean, vermillion robust.
BLUE, VERMILLION, LIGHT_BLUE = "#0072B2", "#D55E00", "#A6D3EE"
RED = "#C00000"
MAX_EXAMPLES = 8


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A GitHub-Markdown table of accuracies in percent: a row per result, and one for its `best` if any.

    The columns are the clean accuracy, each attack in order of first appearance over all results, and the
    worst case over a result's own attacks; `-` where a result lacks one.
    """
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for result in results:
        rows.append((result["method"], result))
        if result.get("best"):
            rows.append((f"{result['method']} (best on val)", result["best"]))
    names = list(dict.fromkeys(name for _, row in rows for name in row["attacks"]))

    def cells(title: str, row: Mapping[str, Any]) -> list[str]:
        robust = [row["attacks"].get(name, {}).get("robust_acc") for name in names]
        return [title, *map(_percent, [row["clean_acc"], *robust, row["worst_case_acc"]])]

    return _grid(["method", "clean", *names, "worst case"], [cells(*row) for row in rows])


def markdown(result: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """The report.md of one result. `figures` are links, relative to the folder that the report lies in."""
    p, n = result["worst_case_acc"], result["eval_size"]
    error = _percent(math.sqrt(p * (1 - p) / n))
    costs = [[name, _number(a["seconds"]), _number(a["passes"])] for name, a in result["attacks"].items()]
    parts = [
        f"# {result['method']}: {result['arch']} on {result['dataset']}",
        table([result]),
        f"- Threat model: {result['norm']}, eps = {result['eps']} ({parse_eps(result['eps']):.4g})\n"
        f"- Evaluation: {n:,} images, standard error of the worst case {error} points\n"
        f"- Training: {result['epochs']} epochs, seed {result['seed']}, {result['train_seconds']:,.1f} s\n"
        f"- Parameters: {', '.join(f'{who} {count:,}' for who, count in result['parameters'].items())}\n"
        f"- Versions: {', '.join(f'{name} {version}' for name, version in result['versions'].items())}",
        _grid(["attack", "seconds", "passes"], costs),
        f"```\n{result['command']}\n```",
        *(f"![{Path(figure).stem.replace('_', ' ')}]({quote(figure)})" for figure in figures),
    ]
    return "\n\n".join(parts) + "\n"


def write(workdir: Path, result: Mapping[str, Any], figures: Sequence[Path] = ()) -> None:
    """Write report.json and report.md: both in full, or the earlier ones stay.

    Args:
      workdir: the run's folder, made where it does not exist.
      result: see the module's docstring; NumPy and JAX scalars are fine.
      figures: paths of images; report.md links those that exist.
    """
    links = [Path(os.path.relpath(f, workdir)).as_posix() for f in figures if Path(f).exists()]
    content = json.dumps(result, indent=2, default=lambda scalar: scalar.item()) + "\n"
    texts = {"report.json": content, "report.md": markdown(result, links)}
    _write({Path(workdir, name): text.encode() for name, text in texts.items()})


def throughput(found: Mapping[str, Any]) -> str:
    """Markdown of a benchmark's JSON (see experiments/throughput.py): a table per group.

    The last column compares with the first row within each round, so what slows the machine for a while cancels:
    the median of these ratios, and their range.
    """
    parts = [f"{found['machine']}, {found['date']}; `{found['command']}`; batch of {found['batch_size']}."]
    for group, rows in found["results"].items():
        reference, first = next((name, row["seconds"]) for name, row in rows.items())
        cells = []
        for name, row in rows.items():
            seconds = row["seconds"]
            ratios = [s / r for s, r in zip(seconds, first, strict=False)]  # a slow program has fewer rounds
            cells.append(
                [
                    name,
                    f"{statistics.median(seconds):.3f}",
                    f"{min(seconds):.3f}-{max(seconds):.3f}",
                    f"{len(seconds)}",
                    f"{row['images_per_second']:,.0f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                ]
            )
        parts.append(_grid([group, "median s", "range", "runs", "images/s", f"time / {reference}"], cells))
    parts.append(", ".join(f"{name} {version}" for name, version in found["versions"].items()) + ".")
    return "\n\n".join(parts)


def over_seeds(found: Mapping[str, Any]) -> str:
    """Markdown of several settings' runs over seeds (see experiments/ablation.py): mean and, in brackets, lowest.

    The accuracies are those of the last parameters, in percent.
    """
    names = list(dict.fromkeys(name for runs in found["rows"].values() for run in runs for name in run["attacks"]))

    def cell(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return f"{_percent(sum(known) / len(known))} ({_percent(min(known))})" if known else "-"

    rows = [
        [
            title,
            f"{len(runs)}",
            cell([run["clean_acc"] for run in runs]),
            *(cell([run["attacks"].get(name, {}).get("robust_acc") for run in runs]) for name in names),
        ]
        for title, runs in found["rows"].items()
    ]
    run = next(iter(found["rows"].values()))[0]
    told = f"{run['dataset']}, {run['arch']}, {run['norm']} eps {run['eps']}, {run['epochs']} epochs, "
    told += f"{run['eval_size']} test images: mean over seeds (lowest); `{found['command']}`."
    return f"{told}\n\n{_grid(['setting', 'seeds', 'clean', *names], rows)}"


def training_curves(path: Path, steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss and the accuracies of a run against its steps, as PNG.

    Args:
      path: the file to write.
      steps: rows {step, loss, accuracy, robust_accuracy} of training batches; the last may be absent.
      validations: rows {step, clean_acc, robust_acc}; may be empty.
    """
    from matplotlib.figure import Figure  # without pyplot, and so without its global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="tight")
    left, right = figure.subplots(1, 2, sharex=True)
    at, loss = _series(steps, "loss")
    few = {"marker": "o"} if len(at) < 3 else {}  # a line of one point is invisible
    left.plot(at, loss, color=LIGHT_BLUE, linewidth=1, label="per batch", **few)
    left.plot(at, _running_mean(loss), color=BLUE, linewidth=2, label="running mean", **few)
    for train, val, label, color in (
        ("accuracy", "clean_acc", "clean", BLUE),
        ("robust_accuracy", "robust_acc", "robust", VERMILLION),
    ):
        at, accuracy = _series(steps, train)
        if len(at):
            right.plot(at, 100 * _running_mean(accuracy), color=color, linewidth=2, label=f"train, {label}", **few)
        at, accuracy = _series(validations, val)
        if len(at):
            right.plot(at, 100 * accuracy, "o:", color=color, markeredgecolor="white", label=f"val, {label}")
    left.set_ylabel("training loss")
    right.set(ylabel="accuracy (%)", ylim=(-2, 102))
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend()
    _save(path, figure)


def perturbation_grid(
    path: Path,
    x: ArrayLike,
    x_adv: ArrayLike,
    labels: ArrayLike,
    predictions: ArrayLike,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draw clean images, perturbations and adversarial images, the first 8 examples as columns, as PNG.

    Perturbations are drawn around gray, all times the one factor that brings the largest to full range. A
    column is titled true class -> class predicted under attack, in red where they differ.

    Args:
      path: the file to write.
      x: images [N, H, W, 1 or 3] in [0, 1], N >= 1.
      x_adv: adversarial images, of the same shape.
      labels: true classes [N].
      predictions: classes [N] predicted for `x_adv`.
      class_names: the names of the classes; their numbers by default.
    """
    from matplotlib.figure import Figure

    x, x_adv, labels, predictions = (np.asarray(a)[:MAX_EXAMPLES] for a in (x, x_adv, labels, predictions))
    chex.assert_equal_shape([x, x_adv])
    chex.assert_shape([labels, predictions], (len(x),))
    delta = x_adv.astype(float) - x
    factor = 0.5 / (np.abs(delta).max() or 0.5)
    rows = {"clean": x, f"perturbation\nx {factor:.3g}": 0.5 + factor * delta, "adversarial": x_adv}

    names = {k: class_names[k] if class_names else str(k) for k in map(int, (*labels, *predictions))}
    size = min(12, 120 / (2 + max(map(len, names.values()))))  # so that a title fits over its column
    figure = Figure(figsize=(1.25 * len(x) + 0.6, 1.25 * len(rows) + 0.6), layout="tight")
    grid = figure.subplots(len(rows), len(x), squeeze=False)
    for line, (row, images) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(row, fontsize=11)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(np.broadcast_to(image.clip(0, 1), (*image.shape[:2], 3)), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    for axes, label, prediction in zip(grid[0], labels, predictions, strict=True):
        axes.set_title(f"{names[int(label)]}\n→ {names[int(prediction)]}", fontsize=size)
        if label != prediction:
            axes.title.set(color=RED, fontweight="bold")
    _save(path, figure)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of `key`. Of a step logged twice, by a resumed run, the later row counts."""
    values = {row["step"]: row[key] for row in rows if row.get(key) is not None and math.isfinite(row[key])}
    return np.array(sorted(values), int), np.array([values[step] for step in sorted(values)], float)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the last fiftieth of a run's values, of five at least where there are as many."""
    window = max(5, len(values) // 50)
    return np.array([values[max(0, i - window) : i].mean() for i in range(1, len(values) + 1)])


def _save(path: Path, figure: "Figure") -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    _write({Path(path): buffer.getvalue()})


def _write(files: Mapping[Path, bytes]) -> None:
    """Write all files, or leave what was there: each beside its place first, then all moved."""
    drafts: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with open(drafts[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave the new name with nothing in it
        for path, draft in drafts.items():
            os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or error
        fix = "make room there, or name a folder that can be written; an earlier file is untouched"
        raise L2LError(f"cannot write {path}: {reason}: {fix}") from error
    finally:
        for draft in drafts.values():
            with contextlib.suppress(OSError):  # moved, or never made
                draft.unlink()


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub-Markdown table, aligned in its source too: the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(line, [header, rule, *rows]))
