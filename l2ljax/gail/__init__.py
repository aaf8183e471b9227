"""Generative adversarial imitation learning (Ho and Ermon, 2016), with Adam or a learned updater of the discriminator.

`environments` and `gym_adapter` are the tasks. `policy`, `rollout` and `trpo` act, collect and improve. `discriminator`
learns the reward, by a rule of `updaters`. `experts` trains whom to imitate, `cloning` imitates by supervision,
`imitate` adversarially. `experiment` and `report` serve `experiments/gail.py`.
"""
