"""Generative adversarial imitation learning, its discriminator moved by Adam or by a learned updater.

    from l2ljax.gail import discriminator, updaters

Learning to Defend by Learning to Attack, section 4 and appendix C, on Ho & Ermon (2016), Generative Adversarial
Imitation Learning. A module has one subject; its docstring is its index.
"""
