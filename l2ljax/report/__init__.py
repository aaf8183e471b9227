"""Reports of runs: tables and pages in `markdown`, and `figures`, whose numbers come from `evaluate.views`."""
