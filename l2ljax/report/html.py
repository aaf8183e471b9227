"""A report's Markdown as a page for a browser: `page(text)`."""

import re
from html import escape

__all__ = ["page"]

STYLE = """body {font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em}
table {border-collapse: collapse; display: block; overflow-x: auto}
td {padding: 0.2em 0.7em; border-bottom: 1px solid #ccc; text-align: right}
td:first-child {text-align: left}
tr:first-child {font-weight: bold}
img {max-width: 100%}
pre {overflow-x: auto; background: #f4f4f4; padding: 0.7em}"""


def page(text: str) -> str:
    """Return the HTML of the Markdown that reports consist of, which begins with a title.

    Blocks between empty lines are headings, tables, lists, commands in fences, or paragraphs, in which images, `code`
    and *emphasis* of the whole are known. Images stay files beside the page.
    """
    title = escape(text.partition("\n")[0].strip("# "))
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n<style>\n{STYLE}\n</style>'
    return "\n".join([head, *map(_block, text.strip().split("\n\n")), ""])


def _block(block: str) -> str:
    lines = block.splitlines()
    if heading := re.fullmatch("(#+) (.*)", block):
        return f"<h{len(heading[1])}>{_inline(heading[2])}</h{len(heading[1])}>"
    if block.startswith("```"):
        return f"<pre>{escape(block.strip('`').strip())}</pre>"
    if block.startswith("- "):
        return "\n".join(["<ul>", *(f"<li>{_inline(line[2:])}</li>" for line in lines), "</ul>"])
    if block.startswith("|"):
        rows = [[_inline(cell.strip()) for cell in line.strip()[1:-1].split("|")] for line in (lines[0], *lines[2:])]
        return "\n".join(["<table>", *(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows), "</table>"])
    return f"<p>{_inline(block)}</p>"


def _inline(text: str) -> str:
    text = re.sub(r"!\[(.*?)\]\((.*?)\)", r'<img alt="\1" src="\2">', escape(text))
    return re.sub(r"^\*(.+)\*$", r"<em>\1</em>", re.sub("`(.+?)`", r"<code>\1</code>", text))
