"""Adversarial training on CIFAR-10: `python experiments/cifar10.py --method=rnn_adv` (see --help)."""

from l2ljax.run import experiment

if __name__ == "__main__":
    experiment.main("cifar10")
