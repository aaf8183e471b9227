"""Throughput: programs to time (`benchmark`), other libraries' (`rivals`), and the script's tables (`throughput`)."""
