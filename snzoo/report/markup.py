"""Elements of HTML, and the page that contains them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from snzoo.errors import printable

NBSP = "\u00a0"
# A page runs no script and loads nothing. Images are embedded in the page.
MOST_MESSAGES = 200  # the number of messages that are shown
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def make_page(title: str, body: str, *, footer: str) -> str:
    """Return an HTML document that needs no other file.

    Args:
        title: the title and heading, as text.
        body: the content, as HTML.
        footer: the footer, as text.
    """
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def escape(value: object) -> str:
    """Return text escaped for HTML, and its invisible characters (controls, bidi marks) escaped."""
    return html.escape(printable(str(value)))


def breakable(name: str) -> str:
    """Return an escaped name, e.g. of a model, with line breaks allowed after underscores."""
    return escape(name).replace("_", "_<wbr>")


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a list of names (text) and their values (HTML)."""
    rows = (f"<div><dt>{breakable(name)}</dt><dd>{value}</dd></div>\n" for name, value in pairs)
    return f'<dl class="facts">\n{"".join(rows)}</dl>\n'


def scrolling(table: str, *, label: str) -> str:
    """Return a box around a table; the box scrolls if the table is wider than the page."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">{table}'
        "</div>\n"
    )


def count(number: int, one: str, many: str) -> str:
    """Return a number with its noun, e.g. ``1 image`` or ``1,000 images``."""
    return f"{number:,} {one if number == 1 else many}"


def messages(lines: Sequence[str], *, source: str) -> str:
    """Return a folded list of the first messages; ``source`` names what holds all of them."""
    items = "".join(f"<li>{escape(line)}</li>\n" for line in lines[:MOST_MESSAGES])
    more = len(lines) - MOST_MESSAGES
    rest = f"<p>… and {more:,} more, in {escape(source)}.</p>\n" if more > 0 else ""
    return f"<details><summary>Messages</summary>\n<ul>\n{items}</ul>\n{rest}</details>\n"


def duration(seconds: float) -> str:
    """Return a time such as ``13.7 s``, ``5 min`` or ``2 h 5 min``."""
    if seconds < 120:
        return f"{seconds:.1f}{NBSP}s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes}{NBSP}min"
    return f"{minutes // 60:,}{NBSP}h {minutes % 60}{NBSP}min"
