"""GAIL with Adam or a learned updater: `python experiments/gail.py --env=CartPole-v1 --updater=adam --seeds=8`."""

from l2ljax.gail import experiment

if __name__ == "__main__":
    experiment.main()
