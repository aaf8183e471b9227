"""Parts of any long job: `workdir` (files), `monitor` (progress, signals, one-line errors), `provenance` (of numbers),
`compilation` (a cache), `hosts` (several processes), `flags` (command lines).
"""
