"""Training steps as a good torch user would write them, the rivals of ours (extra `bench`).

    loss = RIVALS["rnn_adv"]["linear losses"](game, start)

Weights are frozen while the images move, and no unneeded graph is kept. `torch_training` builds the game and compares
the steps with ours.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from l2ljax.defenses.saddle import step_weights

__all__ = [
    "RIVALS", "Game", "Step", "first_iterate", "frozen", "l2l_alternating", "l2l_joint", "pgd", "pgd_adv", "plain",
    "rnn_adv", "step", "trades",
]  # fmt: skip


class Game(NamedTuple):
    """Both players, their optimizers, and the batch, in torch."""

    net: nn.Module
    attacker: nn.Module
    """Without parameters if the attack learns nothing."""
    descent: torch.optim.Optimizer
    ascent: Any
    """An optimizer, or None if the attack learns nothing."""
    x: Tensor
    """[B, C, H, W]."""
    y: Tensor
    eps: float
    low: Tensor
    """The radius of the linf ball, cut with [0, 1]."""
    high: Tensor
    options: Mapping[str, Any]
    """The method's options, see `defenses.options`."""

    def project(self, x: Tensor) -> Tensor:
        """Project x onto the ball."""
        return torch.clamp(x, self.low, self.high)

    def descend(self, loss: Tensor) -> Tensor:
        """Step the classifier."""
        step(loss, self.descent)
        return loss.detach()


Step = Callable[[Game, Tensor], Tensor]
"""(game, the first iterate of the attack) -> the classifier's loss; updates in place."""


def step(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Step these optimizers on one backward pass."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


@contextlib.contextmanager
def frozen(net: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Disable gradients of the weights, in evaluation or training mode; restore training afterwards."""
    net.train(training).requires_grad_(False)
    yield
    net.train().requires_grad_(True)


def plain(game: Game, start: Tensor) -> Tensor:
    """Descend cross-entropy at the clean images."""
    return game.descend(cross_entropy(game.net(game.x), game.y))


def pgd_adv(game: Game, start: Tensor) -> Tensor:
    """Run PGD, then descend cross-entropy at its result."""
    with frozen(game.net):
        x = pgd(game, start, lambda logits: cross_entropy(logits, game.y, reduction="sum"))
    return game.descend(cross_entropy(game.net(x), game.y))


def trades(game: Game, start: Tensor) -> Tensor:
    """Run PGD on the KL divergence, with the clean side computed once; both sides train."""

    def divergence(log_p: Tensor, logits: Tensor, reduction: str) -> Tensor:
        return kl_div(logits.log_softmax(1), log_p, log_target=True, reduction=reduction)

    with frozen(game.net):
        log_p = game.net(game.x).log_softmax(1)
        x = pgd(game, start, lambda logits: divergence(log_p, logits, "sum"))
    clean = game.net(game.x)
    far = divergence(clean.log_softmax(1), game.net(x), "batchmean")
    return game.descend(cross_entropy(clean, game.y) + game.options["beta"] * far)


def pgd(game: Game, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Take steepest-ascent steps in linf on a loss of the logits."""
    size = game.options["step_size"] or game.eps / 4
    for _ in range(game.options["steps"]):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss(game.net(x)), x)
        x = game.project(x.detach() + size * g.sign())
    return x


def rnn_adv(game: Game, x: Tensor, *, linear: bool) -> Tensor:
    """Step both players of RNN-Adv on one backward pass.

    The optimizer's input gradient at x_t is a constant; the weighted loss there is part of phi's objective. As the
    paper describes it, the pass goes through the classifier in each step, so each graph is kept and used twice.
    `linear` has our losses instead: L(c) + <grad L(c), x_t - c>, c = x_t detached, of equal value and derivative.
    """
    weights, value = step_weights(game.options["weights"], game.options["steps"]), x.new_zeros(())
    h = x.new_zeros(game.options["hidden"], x.numel())
    with frozen(game.net):
        for t, weight in enumerate((0.0, *weights[:-1])):
            here = x if t and not linear else x.detach().requires_grad_()
            loss = cross_entropy(game.net(here), game.y, reduction="sum")
            (g,) = torch.autograd.grad(loss, here, retain_graph=t > 0 and not linear)
            if t:
                loss = loss.detach() + (g * (x - here.detach())).sum() if linear else loss
                value = value + weight / len(x) * loss
            largest = g.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
            delta, h = game.attacker(g / largest, h)
            x = game.project(x + game.options["scale"] * game.eps * delta)
    for module in game.net.modules():  # a kept graph holds the statistics, which the training pass overwrites
        if isinstance(module, torch.nn.BatchNorm2d) and not linear:
            module.running_mean, module.running_var = module.running_mean.clone(), module.running_var.clone()
    x.register_hook(lambda g: weights[-1] * g)  # theta descends the loss at x_T, phi ascends w_T times it
    loss = cross_entropy(game.net(x), game.y)
    step(loss + value, game.descent, game.ascent)
    return loss.detach()


def l2l_joint(game: Game, start: Tensor) -> Tensor:
    """Step L2L's convolutional attacker and the classifier on one perturbation."""
    with frozen(game.net):
        x = _perturb(game)
    loss = cross_entropy(game.net(x), game.y)
    step(loss, game.descent, game.ascent)
    return loss.detach()


def l2l_alternating(game: Game, start: Tensor) -> Tensor:
    """Step the classifier, then the attacker on a new perturbation, with the released code's BatchNorm modes."""
    with frozen(game.attacker), frozen(game.net, training=True):
        x = _perturb(game)
    classifier_loss = game.descend(cross_entropy(game.net(x), game.y))
    with frozen(game.net):
        step(cross_entropy(game.net(_perturb(game)), game.y), game.ascent)
    return classifier_loss


def _perturb(game: Game) -> Tensor:
    """Take the attacker's steps from the clean image, given the image and the gradient over its largest entry."""
    x, delta = game.x, torch.zeros_like(game.x)
    for _ in range(game.options["steps"]):
        here = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(cross_entropy(game.net(here), game.y, reduction="sum"), here)
        g = g / g.abs().max().clamp_min(torch.finfo(g.dtype).tiny)
        delta = (delta + game.eps * game.attacker(torch.cat([x, g], 1))).clamp(-game.eps, game.eps)
        x = game.project(game.x + delta)
    return x


def first_iterate(game: Game) -> Tensor:
    """Draw a start of the method's attack."""
    name = game.options.get("start", "clean")
    if name == "uniform":
        return game.project(game.x + torch.empty_like(game.x).uniform_(-game.eps, game.eps))
    return game.project(game.x + 0.001 * torch.randn_like(game.x)) if name == "gaussian" else game.x


RIVALS: dict[str, dict[str, Step]] = {
    "plain": {"": plain},
    "pgd_adv": {"": pgd_adv},
    "trades": {"": trades},
    "rnn_adv": {
        "unrolled through the classifier": functools.partial(rnn_adv, linear=False),
        "linear losses": functools.partial(rnn_adv, linear=True),
    },
    "grad_l2l": {"": l2l_joint},
    "grad_l2l:alternating": {"": l2l_alternating},
    "two_step_l2l": {"": l2l_joint},
    "two_step_l2l:alternating": {"": l2l_alternating},
}
"""Method -> what distinguishes each step in torch -> that step."""
