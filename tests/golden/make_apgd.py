"""Writes apgd.npz, the golden traces of AutoAttack's APGD. Run by hand, where torch and pyautoattack 0.2.0 are:

    python tests/golden/make_apgd.py

Everything is float64 and has a tiny network of two tanh layers, for ten classes. The model of an attack is a function
that looks at its caller's local variables whenever it is called, so that the step sizes and the best losses are
recorded too, and the released code runs as it is. Iterates are stored as float32 (their error is 3e-8).

The l2 radius is so small that no label falls to the third place: there DLR is the constant 1, and its gradient is
rounding noise that AutoAttack divides by 1e-12, so that no two programs could agree.
"""

import functools
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

STEPS, EXAMPLES, SHAPE = 40, 4, (6, 6, 1)
EPS = {"linf": 0.08, "l2": 0.25}  # some examples fall, some hold out


def network(weights, x):
    return torch.tanh((x - 0.5).flatten(1) @ weights["w1"]) @ weights["w2"]


def record(attack, weights, x, y, start):
    """The trace of one run: what the model was asked, and the caller's variables at that time."""
    seen = []

    def model(x_adv):
        variables = sys._getframe(1).f_locals
        names = [name for name in ("step_size", "loss_best") if name in variables]
        seen.append({"x": x_adv.detach().clone()} | {name: variables[name].flatten().clone() for name in names})
        return network(weights, x_adv)

    attack.model = model
    best, accurate, best_loss, adversarial = attack.attack_single_run(x, y, x_init=start)
    step_sizes = [call["step_size"] for call in seen[1:]]  # that led to x_1..x_T
    best_losses = [call["loss_best"] for call in seen[1:]] + [best_loss]  # at x_0..x_T
    return {
        "x": torch.stack([call["x"] for call in seen]).to(torch.float32),
        "step_sizes": torch.stack(step_sizes),
        "best_losses": torch.stack(best_losses),
        "best": best,
        "fooled": accurate == 0,
        "adversarial": adversarial,
    }


def perturb(attack, weights, x, y, offset):
    """What the public method returns if all its runs start at x + offset."""
    run = attack.attack_single_run
    attack.model = lambda x: network(weights, x)
    attack.attack_single_run = lambda x, y: run(x, y, x_init=x + offset)
    torch.Tensor.float = torch.Tensor.double  # it casts the images
    return attack.perturb(x, y)


def scripted(losses):
    """The step sizes [T, N] where the losses [T + 1, N] are as written, wherever the images are."""
    attack = APGDAttack(None, n_iter=STEPS, norm="Linf", eps=0.5, loss="dlr")
    remaining = iter(losses)
    attack.dlr_loss = lambda logits, y: next(remaining) + 0 * logits.sum(1)
    images = torch.zeros(losses.shape[1], *SHAPE)
    attack.init_hyperparam(images)
    weights = {"w1": torch.zeros(36, 2), "w2": torch.zeros(2, 10)}
    return record(attack, weights, images, torch.zeros(len(images), dtype=int), images)["step_sizes"]


def main():
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    weights = {"w1": 0.5 * draw(36, 16), "w2": draw(16, 10)}
    x = (torch.rand(EXAMPLES, *SHAPE, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    order = network(weights, x).argsort(1)
    y, target = order[:, -1], order[:, -3]
    labels = torch.cat([y[:-1], target[-1:]])  # the last is misclassified from the beginning
    arrays = weights | {"x": x, "y": y, "target": target, "labels": labels}
    for norm, eps in EPS.items():
        u = draw(EXAMPLES, *SHAPE)
        u = u / (u.abs().amax((1, 2, 3), True) if norm == "linf" else u.square().sum((1, 2, 3), True).sqrt())
        arrays |= {f"{norm}/eps": eps, f"{norm}/start": (x + eps * u).clamp(0, 1)}
        arrays[f"{norm}/offset"] = eps * u[:1]
        for loss in ("ce", "dlr", "targeted"):

            def attack(norm=norm, eps=eps, loss=loss):
                make = APGDAttack_targeted if loss == "targeted" else functools.partial(APGDAttack, loss=loss)
                return make(None, n_iter=STEPS, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps)

            single = attack()
            single.init_hyperparam(x)
            single.y_target = target
            trace = record(single, weights, x, y, arrays[f"{norm}/start"])
            trace["perturbed"] = perturb(attack(), weights, x, labels, arrays[f"{norm}/offset"])
            arrays |= {f"{norm}/{loss}/{name}": array for name, array in trace.items()}
    arrays["losses"] = (0.3 + draw(STEPS + 1, 100)).cumsum(0).to(torch.float16).to(torch.float64)
    arrays["step_sizes"] = scripted(arrays["losses"])
    arrays = {name: torch.as_tensor(array).detach().numpy() for name, array in arrays.items()}
    np.savez_compressed(Path(__file__).with_name("apgd.npz"), **arrays)


if __name__ == "__main__":
    main()
