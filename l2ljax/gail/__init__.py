"""Generative adversarial imitation learning (Ho and Ermon, 2016); Adam or a learned updater moves the discriminator.

`environments` and `gym_adapter`: where one acts. `policy`, `rollout`, `trpo`: who acts, what came of it, and how to
improve. `discriminator`, `updaters`: the reward that is learned, and who moves its parameters. `experts`, `cloning`,
`imitate`: whom to imitate, the simple way, the adversarial way. `experiment`, `report`: `experiments/gail.py`.
"""
