"""What a run shows: pages and tables in `markdown`, BENCHMARKS.md's in `tables`, `figures`, and the views that a judged
model is illustrated with.
"""
