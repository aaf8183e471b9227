"""Reports of runs: tables in Markdown, report.json and report.md; `figures` draws what they show.

    write(workdir, result, [workdir / "curves.png", workdir / "examples.png"])
    print(table([result, another]))

A result is the content of report.json: a mapping with method, dataset, arch, eps (as given, like "8/255"),
norm, seed, epochs, eval_size, clean_acc, attacks {name: {robust_acc, seconds, passes}}, worst_case_acc,
train_seconds, parameters {player: count}, versions {package: version}, command, and maybe best {clean_acc,
attacks, worst_case_acc}, of the parameters that were best on validation data. Accuracies are fractions.
What cannot be written raises an `L2LError` and leaves the earlier file as it was.
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
from l2ljax.threat import parse_eps


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
    write_files({Path(workdir, name): text.encode() for name, text in texts.items()})


def judgement(result: Mapping[str, Any], checks: Sequence[Any], drawn: Sequence[Path] = ()) -> str:
    """Markdown of `judge.run`'s result: attacks, masking checks (name, verdict, figure), the questions of L2L's
    appendix E with what answers them."""
    known = result["provenance"]
    rows = [[name, f"{100 * accuracy:.2f}"] for name, accuracy in known["attacks"].items()]
    parts = [
        f"# {result['name']}: {result['architecture']} on {result['dataset']}",
        f"Threat: {known['norm']}, eps = {result['eps']} ({known['eps_value']:.5f}), images in [0, 1]; white box, the "
        f"attacks know weights and defense. {known['images']:,} test images, attack seeds {known['seeds']} (an image "
        "counts as fooled if one seed fools it).",
        _grid(["attack", "accuracy %"], [["none", result["clean_acc"]], *rows]),
    ]
    if known["black_box"]:
        names = list(next(iter(known["black_box"].values())))
        cells = [[who, *(_percent(row[name]) for name in names)] for who, row in known["black_box"].items()]
        parts += ["## Black box: accuracy % under attacks on other models", _grid(["surrogate", *names], cells)]
    if checks:
        told = [[c.name, c.verdict, c.figure] for c in checks]
        parts += ["## Masked gradients?", _grid(["a sound model", "verdict", "measured"], told)]
        parts += ["## Checklist (Learning to Defend by Learning to Attack, appendix E)", _checklist(checks, known)]
    parts += [f"![{path.stem}]({quote(path.name)})" for path in drawn]
    parts.append(f"```\n{known['command']}\n```")
    return "\n\n".join(parts) + "\n"


def _checklist(checks: Sequence[Any], known: Mapping[str, Any]) -> str:
    """Each point, and the check or the figure that answers it."""
    by_name = {check.name: check for check in checks}
    points = {
        "one-step attacks are not better than iterative ones": "several steps are not weaker than one",
        "black-box attacks are not better than white-box ones": "the black box is not stronger than the white box",
        "unbounded attacks reach 100 %": "no accuracy is left in any radius",
        "random sampling finds nothing that gradients do not": "random search is not stronger than the gradient",
        "more distortion means more success": "a larger radius is not weaker",
        "the attacks have converged": "the attack has converged",
        "no randomness, no dynamic inference": "inference is one fixed program",
    }
    lines = [f"- {point}: {by_name[name].verdict} ({by_name[name].figure})" for point, name in points.items()]
    lines.append(f"- a diverse set of attacks, clean accuracy reported: {', '.join(known['attacks'])} above")
    return "\n".join(lines)


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


def training_costs(found: Mapping[str, Any]) -> str:
    """Markdown of experiments/throughput.py --train: a step's time, beside the papers' ratio and the least possible."""
    rows, first = found["costs"], next(iter(found["costs"].values()))["seconds"]
    cells = []
    for name, row in rows.items():
        ratios = [s / r for s, r in zip(row["seconds"], first, strict=False)]
        cells.append(
            [
                name,
                f"{statistics.median(row['seconds']):.2f}",
                f"{len(row['seconds'])}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{row['multiplications']:.2f}",
                "-" if row["paper"] is None else f"{row['paper']:.2f}",
                f"{row['attacker_parameters']:,}",
            ]
        )
    told = (
        f"{found['arch']}, batch of {found['batch_size']}; {found['machine']}, {found['date']}; `{found['command']}`."
    )
    base = next(iter(rows))
    header = [
        "method",
        "median s",
        "runs",
        f"time / {base}",
        f"multiplications / {base}",
        "paper",
        "attacker's parameters",
    ]
    return f"{told}\n\n{_grid(header, cells)}"


def runs(found: Mapping[str, Any]) -> str:
    """Markdown of collected reports (see experiments/reproduce.py): their table, and the command of each."""
    commands = "\n".join(f"- `{r['command']}`" for r in found["reports"])
    return f"{table(found['reports'])}\n\n{commands}"


def judgements(found: Mapping[str, Any]) -> str:
    """Markdown of collected results of experiments/evaluate.py: accuracies in percent, and the checks that rang."""
    rows: list[dict[str, float]] = []
    notes = []
    for judged in found["judgements"]:
        known = judged["provenance"]
        black = {f"{a} on {who}": acc for who, row in known["black_box"].items() for a, acc in row.items()}
        rows.append({**known["attacks"], **black, "worst case": known["worst_case_acc"]})
        rung = [check["name"] for check in known["checks"] if not check["passed"]]
        said = f"not so: {'; '.join(rung)}" if rung else f"{len(known['checks'])} checks for masked gradients passed"
        threat = f"{known['norm']} eps {judged['eps']}, {known['images']:,} images"
        notes.append(f"- {judged['name']} ({judged['dataset']}, {judged['architecture']}, {threat}): {said}. ")
        notes[-1] += f"`{known['command']}`"
    names = list(dict.fromkeys(name for row in rows for name in row if name != "worst case"))
    names.append("worst case")
    cells = [
        [judged["name"], judged["clean_acc"], *(_percent(row.get(name)) for name in names)]
        for judged, row in zip(found["judgements"], rows, strict=True)
    ]
    return f"{_grid(['model', 'clean', *names], cells)}\n\n" + "\n".join(notes)


def strength(found: Mapping[str, Any]) -> str:
    """Markdown of experiments/strength.py: the largest loss over draws, mean over images, and the draws' deviation."""
    rows = [
        [victim, attack, f"{curve['largest'][0]:.3f}", f"{curve['largest'][-1]:.3f}", f"{curve['spread'][-1]:.3f}"]
        for victim, curves in found["panels"].items()
        for attack, curve in curves.items()
    ]
    told = f"{found['eval_size']:,} test images; `{found['command']}`."
    header = ["classifier", "attack", "clean loss", "largest loss at the end", "deviation among draws"]
    return f"{told}\n\n{_grid(header, rows)}"


def autoattack(found: Mapping[str, Any]) -> str:
    """Markdown of experiments/autoattack.py: a row per seed with both verdicts, their difference, and the times."""
    theirs = next(name for name in found["autoattack"][0]["robust"] if name != "ours")
    rows = [
        [
            f"{seed}",
            f"{row['robust']['ours']}",
            f"{row['robust'][theirs]}",
            f"{row['differing']}",
            f"{row['seconds']['ours']:.1f}",
            f"{row['seconds'][theirs]:.1f}",
            f"{row['seconds'][theirs] / row['seconds']['ours']:.2f}",
            f"{row['compile_seconds']:.1f}",
        ]
        for seed, row in enumerate(found["autoattack"])
    ]
    told = f"{found['about']}; {found['images']:,} images; {found['machine']}, {found['date']}; `{found['command']}`; "
    told += f"theirs is {theirs}."
    header = ["seed", "robust, ours", "theirs", "verdicts that differ", "seconds, ours", "theirs", "theirs / ours"]
    return f"{told}\n\n{_grid([*header, 'compiling, apart'], rows)}"


def scaling(found: Mapping[str, Any]) -> str:
    """Markdown of experiments/scaling.py: per number of devices what is reduced, how long, and what hides it."""
    rows = [
        [
            f"{row['devices']}",
            f"{row['bandwidth'] / 1e9:,.0f}",
            f"{row['bytes_sent'] / 1e6:.0f}",
            f"{1e3 * row['seconds']:.1f}",
            f"{row['hiding_batch']}",
            f"{row['hiding_batch'] * row['devices']:,}",
            f"{100 * row['share']:.1f}",
        ]
        for row in found["scaling"]
    ]
    told = (
        f"On paper, not measured: {found['arch']}, a step of PGD-{found['steps']} adversarial training; "
        f"{found['bytes'] / 1e6:.0f} MB of gradients and statistics reduced per step, "
        f"{found['step_flops'] / 1e9:.0f} GFLOP per image, of which {found['backward_flops'] / 1e9:.1f} in the "
        "backward pass that makes the gradients, behind which the all-reduce can hide. Assumed: a device reaches "
        f"{found['flops'] / 1e12:.0f} TFLOP/s, a message waits {1e6 * found['latency']:g} us, one ring. "
        f"`{found['command']}`."
    )
    header = ["devices", "GB/s per device", "MB sent by each", "ms", "batch per device that hides it", "global batch"]
    header.append(f"% of a step of {found['batch']} images a device, unhidden")
    return f"{told}\n\n{_grid(header, rows)}"


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
