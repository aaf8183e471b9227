"""Adversarial training on CIFAR-100: `python experiments/cifar100.py --method=grad_l2l` (see --help)."""

from l2ljax.run import experiment

if __name__ == "__main__":
    experiment.main("cifar100")
