"""Throughput: programs to time (`benchmark`), training steps (`training`), other libraries' (`rivals`,
`torch_networks`, `torch_steps`, `torch_training`), and the script's tables (`throughput`). Its
flags are in `cells`; a program is timed in a process of its own (`processes`). `goals` sets target ratios. Counted:
AutoAttack's passes (`passes`). Estimated: communication among many devices (`scaling`).

A first session on a GPU: its jobs (`gpu`), run as separate processes (`agenda`), and verdicts (`verdicts`).
"""
