"""Adversarial training on scikit-learn's 8x8 digits: `python experiments/digits.py --method=rnn_adv` (see --help)."""

from l2ljax.run import experiment

if __name__ == "__main__":
    experiment.main("digits")
