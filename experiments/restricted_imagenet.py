"""Adversarial training on Restricted ImageNet: `python experiments/restricted_imagenet.py --data-dir=DIR`."""

from l2ljax import experiment

if __name__ == "__main__":
    experiment.main("restricted_imagenet")
