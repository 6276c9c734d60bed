"""What the command line prints. Text of any origin is made safe for terminals here, once."""

from __future__ import annotations

import json
import sys
from typing import Any

from snzoo.errors import printable


def show(text: str) -> None:
    """Print ``text`` to stdout, its control characters escaped; newlines separate lines."""
    print("\n".join(printable(line) for line in text.split("\n")), flush=True)


def show_json(document: Any) -> None:
    """Print a JSON document to stdout; JSON escapes control characters itself."""
    print(json.dumps(document, indent=2), flush=True)


def warn(message: str) -> None:
    """Print one line to stderr, as errors are printed."""
    print(f"snzoo: {printable(' '.join(message.split()))}", file=sys.stderr)
