"""Throughput: programs to time (`benchmark`), training steps (`training`), other libraries' (`rivals`,
`torch_training`), and the script's tables (`throughput`). Estimated: communication among many devices (`scaling`).

A first session on a GPU: its jobs (`gpu`), run as separate processes (`agenda`), and verdicts (`verdicts`).
"""
