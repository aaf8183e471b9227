"""Adversarial training on Fashion-MNIST: `python experiments/fashion_mnist.py --method=grad_l2l` (see --help)."""

from l2ljax.run import experiment

if __name__ == "__main__":
    experiment.main("fashion_mnist")
