"""Whole runs, as the scripts in experiments/ call them.

`fit` trains, for programs and scripts alike; `experiment` is its command line. `adversary` trains an attacker of a
fixed classifier, `judge` judges any model and `illustrate` draws it; `command` holds them all. `config` has the flags,
`recipes` the papers' settings, and both become `settings`, of which `setup` makes a run's parts for `training`;
`trained` loads what runs leave.
"""
