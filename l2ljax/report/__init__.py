"""Reports of runs: pages in `markdown` and `html`, and `figures`, whose numbers come from `evaluate.views`."""
