"""Write square.npz: what pyautoattack 0.2.0's Square attack draws, tries and keeps on a tiny network in float64.

Run by hand, where torch and pyautoattack==0.2.0 are installed: python tests/golden/make_square.py

For norm in linf, l2 and each of N examples, attacked alone with T proposals (the example does not fall, or falls late):
  schedule, schedule_1000    p at proposal 0..9999, and with the schedule stretched over 1000 proposals
  bumps_3, ..., bumps_8      the l2 pattern of that side
  x, y, w1, w2               images [N, H, W, C] and labels [N]; logits = tanh(x.ravel() @ w1) @ w2
  NORM_start [N, H, W, C]    the first image tried
  NORM_draws [N, T, 5 + C]   row and column of the window, of the second one, whether turned, signs; 0 after a success
  NORM_sides [N, T]          the window's side, 0 after a success
  NORM_margins [N, T + 1]    z_y - max_{k != y} z_k of the images tried, NaN after a success
  NORM_kept [N, T]           whether the proposal was kept and changed more than roundings
  NORM_best [N, H, W, C]     the best image after the last proposal
"""

from pathlib import Path

import numpy as np
import torch
from pyautoattack.square import SquareAttack

N, T, SHAPE, EPS = 4, 70, (10, 10, 2), {"Linf": 0.1, "L2": 1.0}
RNG = np.random.RandomState(3)
W1, W2 = RNG.normal(0, 0.2, (200, 8)), RNG.normal(size=(8, 3))
X = RNG.uniform(-0.1, 1.1, (N, *SHAPE)).clip(0, 1).round(3)


class Recorder(SquareAttack):
    """The attack, with its draws kept."""

    def attack_single_run(self, x, y):
        self.tried, self.margins, self.draws, self.corners, self.sides = [], [], [], [], []
        return super().attack_single_run(x, y)

    def margin_and_loss(self, x, y):
        self.tried.append(x[0].permute(1, 2, 0).numpy().copy())
        margin, loss = super().margin_and_loss(x, y)
        self.margins.append(margin.item())
        return margin, loss

    def random_int(self, low=0, high=1, shape=(1,)):
        drawn = super().random_int(low, high, list(shape))
        self.corners.append(drawn.item())
        return drawn

    def random_choice(self, shape):
        self.signs = super().random_choice(shape)
        if self.norm == "Linf" and self.corners:
            self.finish(turned=0, side=None)
        return self.signs

    def eta(self, s):
        pattern = super().eta(s)
        self.turned, self.side = float(not torch.equal(pattern, self.upright(s))), s
        return pattern

    def upright(self, s):
        top, bottom = self.eta_rectangles(s // 2, s), -self.eta_rectangles(s - s // 2, s)
        pattern = torch.cat([top, bottom])
        return pattern / (pattern**2).sum(dim=(0, 1), keepdim=True).sqrt()

    def normalize(self, x):
        if self.norm == "L2" and self.corners:
            self.finish(turned=self.turned, side=self.side)
        return super().normalize(x)

    def finish(self, turned, side):
        corners = [*self.corners, 0, 0][:4]  # linf has one window
        self.draws.append([*corners, turned, *self.signs.flatten().tolist()])
        self.sides.append(side)
        self.corners = []


def logits(x):
    return torch.tanh(x.permute(0, 2, 3, 1).reshape(len(x), -1) @ torch.tensor(W1)) @ torch.tensor(W2)


def record(norm, x, y, seed):
    def run(queries):
        torch.manual_seed(seed)
        attack = Recorder(logits, norm=norm, n_queries=queries, eps=EPS[norm], resc_schedule=False)
        attack.init_hyperparam(x)
        best = attack.attack_single_run(x, y)[1][0].permute(1, 2, 0).numpy()
        return attack, best

    attack, best = run(T)
    after = np.stack([run(t)[1] for t in range(T + 1)])  # the same seed: the same draws, stopped after t
    sides = [s or recorded_side(attack.p_selection(i)) for i, s in enumerate(attack.sides)]
    draws, rest = np.array(attack.draws).reshape(-1, 5 + SHAPE[2]), T - len(sides)
    return {
        "start": attack.tried[0],
        "draws": np.pad(draws, ((0, rest), (0, 0))),
        "sides": np.pad(sides, (0, rest)),
        "margins": np.pad(attack.margins, (0, rest), constant_values=np.nan),
        "kept": np.abs(after[1:] - after[:-1]).max(axis=(1, 2, 3)) > 1e-9,
        "best": best,
    }


def recorded_side(p):
    """The side that linf's window has in the attack, which keeps it to itself."""
    return min(max(round((p * SHAPE[0] * SHAPE[1]) ** 0.5), 1), SHAPE[0])


def main():
    torch.set_default_dtype(torch.float64)
    x = torch.tensor(X).permute(0, 3, 1, 2).contiguous()
    y = logits(x).argmax(dim=1)
    long = SquareAttack(logits, norm="L2", n_queries=10_000, eps=1, resc_schedule=False, device="cpu")
    short = SquareAttack(logits, n_queries=1000, eps=1, resc_schedule=True, device="cpu")
    out = {
        "x": X,
        "y": y.numpy(),
        "w1": W1,
        "w2": W2,
        "schedule": np.array([long.p_selection(i) for i in range(10_000)]),
        "schedule_1000": np.array([short.p_selection(i) for i in range(1000)]),
    }
    for side in range(3, 9):
        recorder = Recorder(logits, norm="L2", eps=1, device="cpu")
        out[f"bumps_{side}"] = recorder.upright(side).numpy()
    for norm in EPS:
        runs = [record(norm, x[i : i + 1], y[i : i + 1], seed=i) for i in range(N)]
        out |= {f"{norm.lower()}_{name}": np.stack([run[name] for run in runs]) for name in runs[0]}
    np.savez_compressed(Path(__file__).with_name("square.npz"), **out)


if __name__ == "__main__":
    main()
