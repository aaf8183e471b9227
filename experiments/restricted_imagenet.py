"""Adversarial training on Restricted ImageNet: `python experiments/restricted_imagenet.py --data-dir=DIR`."""

from l2ljax.run import experiment

if __name__ == "__main__":
    experiment.main("restricted_imagenet")
