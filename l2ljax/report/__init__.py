"""Reports of runs: tables and pages in `markdown`, `figures`, and their numbers in `views`."""
