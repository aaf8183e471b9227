"""The results of a GAIL run: figures of each arm, report.json, report.md, curves.

    result["arms"]["adam"] = summarize(curves, final_returns, expert_return)
    write(workdir, result, curves)

An arm is one way to move the discriminator, or a control. `curves` are {metric: [seeds, iterations]}; returns are sums
of the environment's own rewards; `final_returns` [seeds] are the last policies', in gymnasium.
"""

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2ljax.files import write_files

__all__ = ["WINDOW", "about", "draw", "goal", "markdown", "summarize", "table", "write"]

WINDOW = 20
"""The number of iterations to average a return over, for its lowest value and its end."""


def goal(expert_return: float) -> float:
    """Return 95 % of the expert: its return less 5 % of its size, so that it is lower for negative returns too."""
    return expert_return - 0.05 * abs(expert_return)


def summarize(curves: Mapping[str, np.ndarray], final_returns: np.ndarray, expert_return: float) -> dict[str, Any]:
    """Return the numbers of one arm, as lists over its seeds.

    Returns:
      final_return; last_return, the mean of the last 20 iterations; reached, the first iteration (from 1) with 95 % of
      the expert's return, or None; lowest_after, the lowest mean of 20 iterations from there on, or None, and
      lowest_late, in the second half of the run; the discriminator's accuracy at the end, the largest KL of a step,
      and the discriminator's largest parameter.
    """
    returns = curves["return"]
    reached = [_first(row >= goal(expert_return)) for row in returns]
    return {
        "final_return": final_returns.tolist(),
        "last_return": returns[:, -WINDOW:].mean(axis=1).tolist(),
        "reached": [None if at is None else at + 1 for at in reached],
        "lowest_after": [
            _lowest(row[at:]) if at is not None else None for row, at in zip(returns, reached, strict=True)
        ],
        "lowest_late": [_lowest(row[len(row) // 2 :]) for row in returns],
        "accuracy": curves["accuracy"][:, -WINDOW:].mean(axis=1).tolist(),
        "kl": curves["kl"].max(axis=1).tolist(),
        "max_abs": curves["max_abs"].max(axis=1).tolist(),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return a GitHub-Markdown table of a result's arms, with the gap closed if there is a frozen discriminator.

    The gap is between the mean of the frozen control's final returns and the expert's.
    """
    arms, expert = result["arms"], result["expert_return"]
    floor = _mean(arms["frozen"]["final_return"]) if "frozen" in arms else None
    header = ["arm", "seeds", "final return", "lowest seed", "last 20", "reach 95 %", "at iteration", "lowest after"]
    header += ["lowest late", "max theta_D", "gap closed"]
    rows = []
    for name, arm in arms.items():
        if "diverged" in arm:
            rows.append([name, "diverged", *["-"] * (len(header) - 2)])
            continue
        final = arm["final_return"]
        closed = "-"
        if floor is not None and name != "frozen" and expert > floor:
            closed = f"{100 * (_mean(final) - floor) / (expert - floor):.1f} %"
        cells = [name, f"{len(final)}", _spread(final), f"{min(final):.1f}"]
        if "reached" in arm:
            at = [value for value in arm["reached"] if value is not None]
            after = [value for value in arm["lowest_after"] if value is not None]
            cells += [
                _spread(arm["last_return"]),
                f"{len(at)} of {len(final)}",
                f"{statistics.median(at):g}" if at else "-",
                f"{min(after):.1f}" if after else "-",
                f"{min(arm['lowest_late']):.1f}",
                f"{max(arm['max_abs']):.3g}",
            ]
        else:
            cells += ["-"] * 6
        rows.append([*cells, closed])
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def about(result: Mapping[str, Any]) -> str:
    """Describe a table: task, expert, budget, command."""
    sign = {1: "+1 (softplus(l) >= 0: staying alive pays)", -1: "-1 (-softplus(-l) <= 0: every step costs)"}
    speeds = [
        f"{name} {arm['iterations_per_second']:.1f}"
        for name, arm in result["arms"].items()
        if arm.get("iterations_per_second")
    ]
    parts = [
        f"{result['environment']}: expert {result['expert_return']:.1f}, {result['trajectories']} trajectories, "
        f"{result['expert_pairs']} pairs; {result['iterations']} iterations of {result['pairs']:,} steps; "
        f"reward sign {sign[result['sign']]}.",
        "Returns are the environment's own: mean ± standard deviation over seeds. The final return is that of "
        f"{result['episodes']} episodes{' in gymnasium' if result['gymnasium'] else ''} with the last policy; "
        "`lowest after` is the lowest mean of 20 iterations, of any seed, after reaching 95 % of the expert, `lowest "
        "late` that in the second half of the run.",
        f"`{result['command']}`",
    ]
    if speeds:
        parts.insert(2, f"Iterations per second, all seeds together, on {result['machine']}: {', '.join(speeds)}.")
    return "\n\n".join(parts)


def markdown(result: Mapping[str, Any]) -> str:
    """Return one result as text, for BENCHMARKS.md."""
    return f"{about(result)}\n\n{table(result)}"


def write(workdir: Path, result: Mapping[str, Any], curves: Mapping[str, np.ndarray], out: Path | None = None) -> None:
    """Write report.json, report.md and curves.png into the run's folder; the first and the last to `out` too.

    Args:
      workdir: the run's folder.
      result: see the README; without NumPy scalars.
      curves: arm -> returns [seeds, iterations].
      out: a JSON file; the figure goes next to it.
    """
    text = json.dumps(result, indent=2) + "\n"
    horizontal = {"expert": result["expert_return"]}
    if "cloning" in result["arms"]:
        horizontal["behavioral cloning"] = _mean(result["arms"]["cloning"]["final_return"])
    image = draw(curves, horizontal, result["environment"])
    notes = "\n".join(f"- {name}: {arm['diverged']}" for name, arm in result["arms"].items() if "diverged" in arm)
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [f"# GAIL on {result['environment']}", markdown(result), notes, "![curves](curves.png)", f"{packages}."]
    files = {
        workdir / "report.json": text.encode(),
        workdir / "report.md": ("\n\n".join(filter(None, parts)) + "\n").encode(),
        workdir / "curves.png": image,
    }
    if out:
        files |= {out: text.encode(), out.with_suffix(".png"): image}
    write_files(files)


def draw(curves: Mapping[str, np.ndarray], horizontal: Mapping[str, float], title: str) -> bytes:
    """Return a PNG: the mean return of each arm against iterations, with a band from lowest to highest seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="tight")
    axes = figure.subplots()
    for i, (name, returns) in enumerate(curves.items()):
        at = np.arange(1, returns.shape[1] + 1)
        axes.fill_between(at, returns.min(axis=0), returns.max(axis=0), color=f"C{i}", alpha=0.15, linewidth=0)
        axes.plot(at, returns.mean(axis=0), color=f"C{i}", linewidth=1.5, label=name)
    for style, (name, level) in zip(("--", ":"), horizontal.items(), strict=False):
        axes.axhline(level, color="black", linestyle=style, linewidth=1, label=name)
    axes.set(title=f"{title}: mean over seeds, lowest to highest", xlabel="iteration", ylabel="return")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _first(true: np.ndarray) -> int | None:
    return int(true.argmax()) if true.any() else None


def _lowest(row: np.ndarray) -> float:
    window = min(WINDOW, len(row))
    return float(np.convolve(row, np.full(window, 1 / window), "valid").min())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> str:
    return f"{_mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
