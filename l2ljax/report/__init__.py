"""Reports of runs: tables and pages in `markdown`, `figures`, and in `views` the numbers that figures show."""
