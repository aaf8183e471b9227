"""Parts of any long job: `workdir` its files, `monitor` progress, signals and errors in one line, `provenance` of its
numbers, `compilation` kept between processes, `hosts` many processes, `flags` command lines.
"""
