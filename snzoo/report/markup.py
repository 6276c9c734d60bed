"""Pieces of HTML that several parts of the page are made of."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from snzoo.errors import printable

NBSP = "\u00a0"


def text(value: object) -> str:
    """Escaped for HTML, and what can't be seen (controls, marks that turn text around) too."""
    return escape(printable(str(value)))


def breakable(name: str) -> str:
    """:func:`text` of a model's name, which may go on in another line after an underscore."""
    return text(name).replace("_", "_<wbr>")


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names beside their values, which are HTML."""
    rows = (f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>\n" for name, value in pairs)
    return f'<dl class="facts">\n{"".join(rows)}</dl>\n'


def scrolling(table: str, *, label: str) -> str:
    """A table in a box of its own, which scrolls where the table is wider than the page."""
    return (
        f'<div class="scroll" role="region" aria-label="{text(label)}" tabindex="0">{table}</div>\n'
    )


def count(number: int, one: str, many: str) -> str:
    """E.g. ``1 image``, ``1,000 images``."""
    return f"{number:,} {one if number == 1 else many}"
