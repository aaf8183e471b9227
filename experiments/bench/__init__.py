"""Throughput: programs to time (`benchmark`), other libraries' (`rivals`), and the script's tables (`throughput`).

A first session on a GPU: its list (`gpu`), which runs as separate processes (`agenda`), and verdicts (`verdicts`).
"""
