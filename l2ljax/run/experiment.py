"""A whole run: data -> training -> evaluation -> report. The scripts in experiments/ are a call of `main`.

main("cifar10")                                        # reads the command line
run(config.resolve("digits", "rnn_adv", config.Config(epochs=3)))    # returns the content of report.json
"""

from collections.abc import Sequence
from typing import Any

from l2ljax import data, defenses
from l2ljax.attacks import names
from l2ljax.report import markdown
from l2ljax.run import fit, recipes, seeds
from l2ljax.run.config import Config, methods
from l2ljax.run.settings import Settings
from l2ljax.runtime import flags, hosts, monitor

__all__ = ["main", "run", "run_once"]


def main(dataset: str | None, arguments: Sequence[str] | None = None) -> None:
    """Run the command line of experiments/DATASET.py. An error of ours is one line on stderr and exit status 2.

    Without a data set there is `--help` alone.
    """
    about = f"Adversarial training on {dataset or 'DATASET'}. Flags replace entries of its recipes; 0 leaves one out."
    recipe = lambda: {"Recipes": recipes.table(dataset)} if dataset else {"DATASET": ", ".join(data.NAMES)}
    tables = lambda: {**recipe(), "Methods and --options": defenses.table(), "Attacks": names.table()}
    config = flags.read(Config, about, tables, arguments)
    assert dataset
    place = (config.coordinator, config.num_processes, config.process_id)
    joined = hosts.joined(*place, distributed=config.distributed, heartbeat_timeout=config.heartbeat_timeout)
    with monitor.script(config.devices), joined:
        planned = {method: seeds.plan(dataset, method, config) for method in methods(config)}
        if config.seeds > 1:
            rows = {method: [run_once(settings) for settings in of] for method, of in planned.items()}
            folder, summary = hosts.on_first(seeds.write, dataset, config, rows)
            print(f"\n{summary}\nreport over seeds: {folder}")
            return
        results = [run(settings) for of in planned.values() for settings in of]
        if len(results) > 1:
            print("\n" + markdown.table(results))


def run_once(settings: Settings) -> dict[str, Any]:
    """Return what `run` returns, or returned when it was run before."""
    report: dict[str, Any] | None = hosts.on_first(lambda: seeds.finished(settings))
    return run(settings) if report is None else report


def run(settings: Settings) -> dict[str, Any]:
    """Train in the settings' workdir and return the content of report.json; see `fit.run`.

    A classifier that should start trained, where no --init-from names one, is trained in WORKDIR/classifier first.
    """
    if settings.pretrained and not settings.init_from:
        plain = recipes.plain_before(settings)
        run_once(plain)
        settings = settings._replace(init_from=str(plain.workdir))
    report = fit.run(settings).report
    assert report is not None  # there is a workdir
    return report
