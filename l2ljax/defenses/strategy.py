"""LAS-AT: adversarial training on attacks whose parameters a network chooses for each image.

    defense = las_at(classifier, threat.linf(8 / 255))

LAS-AT: Adversarial Training with Learnable Attack Strategy (Jia et al., 2022).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient

from l2ljax import losses, threat
from l2ljax.attacks.ascent import Ascent
from l2ljax.attacks.gradient import pgd
from l2ljax.attacks.learned import Attacker
from l2ljax.defenses import saddle
from l2ljax.defenses.saddle import Outcome, Steps, Width
from l2ljax.models import initial
from l2ljax.models.attackers import StrategyNetwork
from l2ljax.threat import Ball, spread
from l2ljax.types import Array, Batch, Classifier, Defense, Key, Players, Tree, example_keys, fold_in
from l2ljax.values import NonNegative, Positive, checked

__all__ = ["Strategy", "las_at", "policy_gradient", "strategic"]


@checked
def las_at(
    classifier: Classifier, ball: Ball, *, steps: Steps = 14, largest_radius: Positive = 15 / 8,
    evaluation: NonNegative = 4.0, clean: NonNegative = 2.0, attacker_width: Width | None = None,
    axis_name: str | None = None,
) -> Defense:  # fmt: skip
    """Solve min over theta of E L_1, max over phi of E L_1 + evaluation L_2 + clean L_3 over strategies a ~ p(a | x).

        L_1 = CE(f(x_a)),  L_2 = -CE(f'(x')),  L_3 = -CE(f'(x)),

    x_a is made by PGD of the radius, number of steps and step size in a; f' is the classifier after a step on x_a, and
    x' is made for it by PGD-10. phi's gradient is the policy gradient (REINFORCE). The values to choose from are those
    of the released code's command for CIFAR-10: radii of 3/8 to 15/8 eps, more than the threat allows, 3 to 14 steps,
    and steps of 1/8 to 5/8 eps, from a uniform draw of the threat. The trained attacker (`own`) keeps to the threat.

    L_2 and L_3 need schedule "alternating", in which phi moves after theta with the strategies of the same draws: f' is
    then the classifier itself. That takes 2 T + 12 passes and a training pass. "joint" has L_1 alone, in T passes and a
    training pass, where nothing speaks against the largest radius. On a classifier that does not move (schedule
    "attacker") L_2 and L_3 are constants: give evaluation=0 and clean=0.

    Deviations from the released code: phi moves at each step (there at every 20th), and after theta instead of before
    it, on the same draws of strategies, by Adam (there by SGD with clipped gradients); f' is one step of theta's own
    optimizer; L_1 is at f' and without a bound (there at most 10); each image has a reward of its own (there one for
    all, with accuracies for L_2 and L_3), less the batch's mean (there without a baseline); PGD-10 has no restart
    (there one) and does not stop at images that are wrong; the loss is without label smoothing; the network is small.

    Args:
      steps: T, the largest number of steps; each image stops at its own.
      largest_radius: in units of eps; the others are in the same proportions to it.
      evaluation: weight of L_2, as in the released code.
      clean: weight of L_3, likewise.
      attacker_width: channels of the strategy network's first convolution, 16 by default.
    """
    player = strategic(
        radii=[largest_radius * i / 15 for i in range(3, 16)],
        steps=range(min(3, steps), steps + 1),
        step_sizes=[i / 8 for i in range(1, 6)],
        width=attacker_width or 16,
    )
    judge = pgd(ball, step_size=ball.eps / 4, steps=10)

    def bonus(params: Tree, batch: Batch, ascent: Ascent, end: Array) -> Array:
        return policy_gradient(ascent.state.log_prob, end, axis_name)

    def make(ball: Ball) -> Defense:
        return saddle.unrolled(
            classifier, player, ball, saddle.adversarial(), steps=steps, bonus=bonus, axis_name=axis_name
        )

    beyond = make(ball._replace(project=lambda x, x0: x))  # the strategy's radius bounds it

    def objective(params: Players, stats: Players, key: Key, batch: Batch, mode: str, **shift: Any) -> Outcome:
        value, rest = beyond.objective(params, stats, key, batch, mode, **shift)
        if mode != "attacker" or not (evaluation or clean):
            return value, rest
        keys = example_keys(key, len(batch.x))
        variables = stop_gradient({"params": params.classifier, "batch_stats": stats.classifier})
        logits_fn = jax.tree_util.Partial(classifier.logits, variables)
        moved = judge(logits_fn, fold_in(keys, 1), batch.x, losses.classes(batch.y))
        loss = [losses.cross_entropy(logits_fn(x), batch.y) for x in (moved, batch.x)]
        same = player.rule(params.attacker, {}, fold_in(fold_in(keys, 0), 0), losses.classes(batch.y)).init(batch.x)
        return value + policy_gradient(same.log_prob, -evaluation * loss[0] - clean * loss[1], axis_name), rest

    return Defense(player.init, objective, make(ball).attack)


def policy_gradient(log_prob: Array, reward: Array, axis_name: str | None = None) -> Array:
    """Return a scalar of value 0 whose derivative is mean_b (r_b - mean r) d log p_b: REINFORCE, Williams (1992).

    The mean is over all devices of `axis_name`. Since it contains r_b itself, the expectation is (1 - 1/B) times the
    gradient of the expected reward.
    """
    mean = reward.mean()
    score = log_prob * stop_gradient(reward - (jax.lax.pmean(mean, axis_name) if axis_name else mean))
    return (score - stop_gradient(score)).mean()


class Strategy(NamedTuple):
    """The state of a strategic attacker between steps."""

    taken: Array
    """The number of steps taken so far, a scalar."""
    radius: Array
    """[B], in units of eps, like `step_size`."""
    steps: Array
    """The number of steps of each image [B]."""
    step_size: Array
    log_prob: Array
    """The logarithm of the probability of these three [B], differentiable in the network's parameters."""


@checked
def strategic(
    *, radii: Sequence[float], steps: Sequence[int], step_sizes: Sequence[float], width: Width = 16
) -> Attacker:
    """Return PGD with a radius, a number of steps and a step size that a network draws for each image from tables.

    Args:
      radii: in units of eps. They may exceed 1: the rule projects onto this radius, the attack's loop onto its ball.
      steps: numbers of steps, after which the image stays.
      step_sizes: in units of eps.
      width: channels of the network's first convolution.
    """
    tables: tuple[Sequence[float], ...] = (radii, steps, step_sizes)
    network: nn.Module = StrategyNetwork(tuple(map(len, tables)), width)

    @initial.compiled
    def init(key: Key, x: Array) -> tuple[Tree, Tree]:
        return network.init(key, x[:1])["params"], {}

    def rule(
        params: Tree, batch_stats: Tree, keys: Key, y: Array, train: bool = False, axis_name: str | None = None
    ) -> optax.GradientTransformation:
        def start(x: Array) -> Strategy:
            values, log_prob = [], jnp.zeros(len(x), x.dtype)
            for i, (table, logits) in enumerate(zip(tables, network.apply({"params": params}, x), strict=True)):
                chosen = jax.vmap(jax.random.categorical)(fold_in(keys, i), logits)
                values.append(jnp.asarray(table)[chosen])
                log_prob -= optax.softmax_cross_entropy_with_integer_labels(logits, chosen)
            return Strategy(jnp.zeros((), jnp.int32), values[0], values[1], values[2], log_prob)

        def update(
            grads: Array, state: Strategy, x: Array, *, x0: Array, ball: Ball, **_: Any
        ) -> tuple[Array, Strategy]:
            def project(radius: Array, x: Array, x0: Array) -> Array:
                own = threat.resized(ball, radius * ball.eps)
                return own.project(x[None], x0[None])[0]

            moved = x - spread(state.step_size * ball.eps, x) * ball.steepest(grads)
            moved = jax.vmap(project)(state.radius, moved, x0)
            updates = jnp.where(spread(state.taken < state.steps, x), moved - x, 0)
            return updates, state._replace(taken=state.taken + 1)

        return optax.GradientTransformationExtraArgs(start, update)

    return Attacker(init, rule, lambda state: {})
