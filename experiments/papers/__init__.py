"""The papers' tables, ours beside them: `targets` what is printed, `plan` what is run, `work` runs it.

    python experiments/reproduce.py --list
    python experiments/reproduce.py --only=rnn_adv:table3 --minutes=90 --data-dir=FOLDER
    python experiments/reproduce.py --tables

A part of the plan is one evaluation for one row of a table: the jobs it needs (training runs, then judgements), each a
command of our scripts, and where the row's columns are found. What a job leaves in runs/ says whether it is complete,
so a list that was stopped goes on where it was. A finished part is kept as JSON in experiments/results/papers/.
`compare` and `claims` set all of them beside the papers, `tables` has the other results of BENCHMARKS.md.
"""
