"""Adversarial training on SVHN: `python experiments/svhn.py --method=grad_l2l` (see --help)."""

from l2ljax.run import experiment

if __name__ == "__main__":
    experiment.main("svhn")
