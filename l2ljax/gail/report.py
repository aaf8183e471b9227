"""The results of a GAIL run: figures of each arm, report.json, report.md, curves.

    result["arms"]["adam"] = summarize(curves, final_returns, expert_return)
    write(workdir, result, curves)

An arm is one way to move the discriminator, or a control. `curves` are {metric: [seeds, iterations]}; returns are sums
of the environment's own rewards; `final_returns` [seeds] are the last policies', in gymnasium.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from l2ljax.files import write_files
from l2ljax.report import figures, html
from l2ljax.report.markdown import grid, shown

__all__ = ["METRICS", "WINDOW", "about", "draw", "goal", "markdown", "summarize", "table", "write"]

METRICS = ("return", "accuracy", "kl", "max_abs")
"""Those that `summarize` needs, one number per seed and iteration."""
WINDOW = 20
"""The number of iterations to average a return over, for its lowest value, its end and its curve."""


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
    reached = [int(row.argmax()) + 1 if row.any() else None for row in returns >= goal(expert_return)]
    return {
        "final_return": final_returns.tolist(),
        "last_return": returns[:, -WINDOW:].mean(axis=1).tolist(),
        "reached": reached,
        "lowest_after": [at and _lowest(row[at - 1 :]) for row, at in zip(returns, reached, strict=True)],
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
    floor = fmean(arms["frozen"]["final_return"]) if "frozen" in arms else expert
    header = ["arm", "seeds", "final return", "lowest seed", "last 20", "reach 95 %", "at iteration", "lowest after"]
    header += ["lowest late", "max theta_D", "gap closed"]
    rows = []
    for name, arm in arms.items():
        if "diverged" in arm:
            rows.append([name, "diverged", *["-"] * 9])
            continue
        final, curve = arm["final_return"], ["-"] * 6
        if "reached" in arm:
            at = [value for value in arm["reached"] if value is not None]
            curve = [
                _spread(arm["last_return"]),
                f"{len(at)} of {len(final)}",
                f"{statistics.median(at):g}" if at else "-",
                f"{min(value for value in arm['lowest_after'] if value is not None):.1f}" if at else "-",
                f"{min(arm['lowest_late']):.1f}",
                f"{max(arm['max_abs']):.3g}",
            ]
        closed = f"{100 * (fmean(final) - floor) / (expert - floor):.1f} %" if expert > floor else "-"
        closed = "-" if name == "frozen" else closed
        rows.append([name, f"{len(final)}", _spread(final), f"{min(final):.1f}", *curve, closed])
    return grid(header, rows)


def about(result: Mapping[str, Any]) -> str:
    """Describe a table: task, expert, budget, command."""
    sign = {1: "+1 (softplus(l) >= 0: staying alive pays)", -1: "-1 (-softplus(-l) <= 0: every step costs)"}
    rates = {name: arm.get("iterations_per_second") for name, arm in result["arms"].items()}
    speeds = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items() if rate)
    parts = [
        f"{result['environment']}: expert {result['expert_return']:.1f}, {result['trajectories']} trajectories, "
        f"{result['expert_pairs']} pairs; {result['iterations']} iterations of {result['pairs']:,} steps; "
        f"reward sign {sign[result['sign']]}.",
        "Returns are the environment's own: mean ± standard deviation over seeds. The final return is that of "
        f"{result['episodes']} episodes{' in gymnasium' if result['gymnasium'] else ''} with the last policy; "
        "`lowest after` is the lowest mean of 20 iterations, of any seed, after reaching 95 % of the expert, `lowest "
        "late` that in the second half of the run; `max theta_D` the discriminator's largest parameter; `gap closed` "
        "how much of the way from the frozen control to the expert. `at iteration` is the median over seeds, `last 20` "
        "the mean of as many iterations. An arm is an updater of the discriminator: adam, ascent (plain gradient "
        "steps), l2l_dense (L2L's network of all gradients) or l2l_coordinate (a network for each coordinate); or a "
        "control: frozen never moves, wrong_sign pays the opposite, shuffled has the expert's actions in other states, "
        "cloning has no discriminator. An episode of FixedCartPole goes on after the fall.",
        f"Iterations per second, all seeds together, on {result['machine']}: {speeds}." if speeds else "",
        f"`{result['command']}`",
    ]
    return "\n\n".join(filter(None, parts))


def markdown(result: Mapping[str, Any]) -> str:
    """Return one result as text: what was run, the table, and where an arm diverged."""
    notes = "\n".join(f"- {name}: {arm['diverged']}" for name, arm in result["arms"].items() if "diverged" in arm)
    return "\n\n".join(filter(None, [about(result), table(result), notes]))


def write(workdir: Path, result: Mapping[str, Any], curves: Mapping[str, np.ndarray], out: Path | None = None) -> None:
    """Write report.json, report.md, index.html and curves.png into the run's folder; the first and last to `out` too.

    Args:
      workdir: the run's folder.
      result: the content of report.json, see `experiment._results`; without NumPy scalars.
      curves: arm -> returns [seeds, iterations].
      out: a JSON file; the figure goes next to it.
    """
    text = (json.dumps(result, indent=2) + "\n").encode()
    levels = {"expert": result["expert_return"]}
    if "cloning" in result["arms"]:
        levels["behavioral cloning"] = fmean(result["arms"]["cloning"]["final_return"])
    image = draw(curves, levels, result["environment"])
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [f"# GAIL on {result['environment']}", markdown(result), shown("curves.png"), f"{packages}."]
    page = "\n\n".join(filter(None, parts)) + "\n"
    files = {workdir / "report.json": text, workdir / "report.md": page.encode(), workdir / "curves.png": image}
    files[workdir / "index.html"] = html.page(page).encode()
    if out:
        files |= {out: text, out.with_suffix(".png"): image}
    write_files(files)


def draw(curves: Mapping[str, np.ndarray], levels: Mapping[str, float], title: str) -> bytes:
    """Return a PNG: returns against iterations, averaged over the last 20, with horizontal lines at `levels`.

    Each arm has its mean over seeds as a line, and a band from its lowest to its highest seed.
    """
    figure, ((axes,),) = figures.canvas((9, 5))
    styles = zip(cycle(figures.COLORS), cycle(("-", "--", "-.")), curves.items(), strict=False)
    for color, style, (name, returns) in styles:
        smooth = np.array([figures.running_mean(row, WINDOW) for row in returns])
        at = np.arange(1, returns.shape[1] + 1)
        axes.fill_between(at, smooth.min(axis=0), smooth.max(axis=0), color=color, alpha=0.12, linewidth=0)
        axes.plot(at, smooth.mean(axis=0), color=color, linestyle=style, linewidth=2, label=name)
    for color, style, (name, level) in zip(("black", figures.RED), ("--", ":"), levels.items(), strict=False):
        axes.axhline(level, color=color, linestyle=style, linewidth=1.5, label=name)
    seeds = max(map(len, curves.values()), default=0)
    axes.set(title=f"GAIL on {title}", xlabel="iteration", ylabel=f"return, mean of the last {WINDOW} iterations")
    figures.tidy(axes)
    figure.legend(loc="outside right upper", title=f"mean of {seeds} seeds,\nbands: lowest to highest")
    return figures.png(figure)


def _lowest(row: np.ndarray) -> float:
    window = min(WINDOW, len(row))
    return float(np.convolve(row, np.full(window, 1 / window), "valid").min())


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
