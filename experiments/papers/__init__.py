"""The papers' tables next to ours: `targets` has the printed numbers, `plan` the runs, `work` runs them.

    python experiments/reproduce.py --list
    python experiments/reproduce.py --only=rnn_adv:table3 --minutes=90 --data-dir=FOLDER
    python experiments/reproduce.py --tables

A part of the plan is one evaluation for one row of a table: its jobs (training runs, then evaluations), each a command
of our scripts, and the source of the row's columns. A job's files in runs/ show whether it is complete, so a stopped
list resumes. A finished part is kept as JSON in experiments/results/papers/ (`records`).

The plan: `jobs` (commands as data), `effort` (their time), `equal` (the rows of equal passes), `printed` (rows at their
papers' own settings), `listing` (--list). The page: `page` joins `compare` (beside the papers), `claims` (what
reproduces, by the rules of `evidence`), `ablations` (settings on digits), `overview` and `figures` (drawings), and
`tables` (all other results).
"""
