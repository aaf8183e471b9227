"""The loss of classifiers along attacks step by step: L2L-DA's and RNN-Adv's Figure 2.

    python experiments/strength.py --victims=runs/mnist_pgd_adv,runs/mnist_l2l_da --attackers=runs/mnist_l2l_da

PGD and trained attackers attack each test image `draws` times with other starts or latents; one that draws neither,
like L2L's, starts at a uniform draw from the ball (section 4). The curves are means over images of the largest loss,
with a band of one standard deviation among the draws.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from l2ljax import data, defenses, threat
from l2ljax.evaluate.views import losses_along, pgd_path
from l2ljax.files import check_writable, write_json
from l2ljax.report.figures import loss_along_attacks
from l2ljax.run.illustrate import short_names
from l2ljax.run.trained import check_threat, load_attacker, load_classifier, read_config
from l2ljax.runtime.flags import read
from l2ljax.runtime.monitor import script
from l2ljax.runtime.provenance import provenance
from l2ljax.types import Array, Attack, Key, LogitsFn, fold_in
from l2ljax.values import Count, Seed, parse_list


@dataclasses.dataclass(frozen=True)
class Flags:
    """The models and attacks."""

    victims: str
    """Workdirs of runs, separated by commas."""
    attackers: str
    """Workdirs of runs with a trained attacker, separated by commas."""
    data_dir: str | None = None
    steps: Count = 10
    draws: Count = 10
    eval_size: Count = 1000
    seed: Seed = 0
    out: Path = Path("runs/strength.json")
    """The numbers, a kept result if they are in experiments/results; the figure goes next to them."""


def main(flags: Flags) -> None:
    """Attack, write, draw."""
    check_writable(flags.out)
    victims = parse_list(str, flags.victims, "--victims")
    players = {name: prepared(flags, victim) for name, victim in zip(short_names(victims), victims, strict=True)}
    panels, key = dict[str, dict[str, Any]](), jax.random.key(flags.seed)
    for victim, (logits_fn, split, tried) in players.items():
        for name, path in tried.items():
            curve = losses_along(logits_fn, split, path, key=key, draws=flags.draws)
            panels.setdefault(victim, {})[name] = curve
            print(f"{victim}, {name}: {curve['largest'][-1]:.3f} after {flags.steps} steps", flush=True)
    loss_along_attacks(flags.out.with_suffix(".png"), panels)
    images = min(len(split.labels) for _, split, _ in players.values())  # fewer where the data set has
    write_json(flags.out, {**provenance(), "eval_size": images, "panels": panels})


def prepared(flags: Flags, victim: str) -> tuple[LogitsFn, data.Split, dict[str, Any]]:
    """Return a victim, its images and the attacks on it, all of one threat, before any of them runs."""
    saved, attackers = read_config(victim), parse_list(str, flags.attackers, "--attackers")
    tried = {"PGD": pgd_path(ball := check_threat(victim, saved, None), steps=flags.steps)}
    for name, workdir in zip(short_names(["PGD", *attackers])[1:], attackers, strict=True):
        attack = load_attacker(workdir, steps=flags.steps, path=True, ball=ball)
        tried[name] = attack if draws(read_config(workdir)) else restarted(attack, ball)
    test = data.load(saved["dataset"], flags.data_dir or saved.get("data_dir")).test
    return load_classifier(victim), test.take(slice(flags.eval_size)), tried


def draws(saved: dict[str, Any]) -> bool:
    """Return whether a run's attacker draws a latent or its start."""
    options = {**defenses.options(saved["method"]), **saved["options"]}
    return bool(options.get("latent")) or options.get("start", "clean") != "clean"


def restarted(path: Attack, ball: threat.Ball) -> Attack:
    """Return the attack from a uniform draw of the ball around x, each iterate projected onto that ball."""

    def attack(logits_fn: LogitsFn, key: Key, x: Array, y: Array) -> Array:
        return jax.vmap(lambda moved: ball.project(moved, x))(path(logits_fn, key, ball.sample(fold_in(key, 0), x), y))

    return attack


if __name__ == "__main__":
    with script():
        main(read(Flags, str(__doc__)))
