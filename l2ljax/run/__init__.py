"""Whole runs, as the scripts in experiments/ call them.

`experiment` trains and reports, `adversary` trains an attacker of a fixed classifier, `judge` judges any model and
`illustrate` draws it; `recipes` has the papers' settings, `config` the flags, `setup` makes of them a run's parts.
"""
