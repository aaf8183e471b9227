"""What a run shows: pages and tables in `markdown`, BENCHMARKS.md's in `tables`, `figures`, and in `views` the numbers
that figures of one model take.
"""
