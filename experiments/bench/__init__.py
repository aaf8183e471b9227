"""Throughput: programs to time (`benchmark`), training steps (`training`), other libraries' (`rivals`,
`torch_training`), and the script's tables (`throughput`).

A first session on a GPU: its jobs (`gpu`), run as separate processes (`agenda`), and verdicts (`verdicts`).
"""
