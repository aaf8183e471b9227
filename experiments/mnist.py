"""Adversarial training on MNIST: `python experiments/mnist.py --method=rnn_adv` (see --help)."""

from l2ljax.run import experiment

if __name__ == "__main__":
    experiment.main("mnist")
