"""Writes fab.npz: what the FAB of AutoAttack asks a small network, in float64.

Run by hand, in an environment with torch and pyautoattack 0.2.0 (`pip install torch pyautoattack==0.2.0`), when the
cases change: `python tests/golden/make_fab.py`. The tests read the file and need neither.

Contents: the network logits(x) = tanh((x - 0.5) w1) w2 (w1 [36, 12], w2 [12, 10]), images x [4, 6, 6, 1] with black and
white pixels, their labels y [4]; and for each norm, `linf` and `l2`, and each `targets`, 0 (the nearest of all
classes) or 2 (the second most likely wrong class):

  {norm}_{targets}_points [STEPS, 2, 4, 6, 6, 1]: the images at which the model is differentiated, and the ones whose
    label is then asked for (float32, to save space);
  {norm}_{targets}_best [4, 6, 6, 1]: the result, float64.
"""

from pathlib import Path

import numpy as np
import torch
from pyautoattack.fab_pt import FABAttack_PT

STEPS = 32


class Recorder(torch.nn.Module):
    """The network; keeps the images it is called with, those to be differentiated at apart from the others."""

    def __init__(self, w1, w2):
        super().__init__()
        self.w1, self.w2 = torch.tensor(w1), torch.tensor(w2)
        self.differentiated, self.labelled = [], []

    def forward(self, x):
        (self.differentiated if x.requires_grad else self.labelled).append(x.detach().numpy().copy())
        return torch.tanh((x - 0.5).reshape(len(x), -1) @ self.w1) @ self.w2


def main():
    """Run the four kinds of attacks and write the file next to this one."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # the attack casts its images and masks with it
    rng = np.random.RandomState(3)
    w1, w2 = rng.normal(0, 0.4, (36, 12)), rng.normal(0, 1.0, (12, 10))
    x = rng.uniform(-0.3, 1.3, (4, 6, 6, 1)).clip(0, 1)
    images = torch.tensor(x)
    y = Recorder(w1, w2)(images).argmax(1)
    arrays = {"w1": w1, "w2": w2, "x": x, "y": y.numpy()}
    for norm in ("Linf", "L2"):
        for targets in (0, 2):
            model = Recorder(w1, w2)
            attack = FABAttack_PT(model, norm=norm, n_iter=STEPS, eps=0.3, device="cpu", targeted=targets > 0)
            attack.target_class = targets + 1
            best = attack.attack_single_run(images, y, use_rand_start=False, is_targeted=targets > 0)
            points = np.stack([model.differentiated, model.labelled[-STEPS:]], axis=1)
            arrays[f"{norm.lower()}_{targets}_points"] = points.astype(np.float32)
            arrays[f"{norm.lower()}_{targets}_best"] = best.numpy()
            print(norm, targets, (best - images).abs().amax((1, 2, 3)).numpy())
    np.savez_compressed(Path(__file__).with_name("fab.npz"), **arrays)


if __name__ == "__main__":
    main()
