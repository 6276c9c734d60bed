"""The token that clients must send."""

from __future__ import annotations

import os
from pathlib import Path

from snzoo.errors import ArgumentError, FileError, first_line

VARIABLE = "SNZOO_SERVE_TOKEN"


def read_token(file: Path | None = None) -> str | None:
    """Return the token in a file, by default the one of the environment, or None.

    Raises:
        FileError: the file cannot be read.
        ArgumentError: the token is empty, or not a single line of visible ASCII characters.
    """
    if file is None and VARIABLE not in os.environ:
        return None
    try:
        text = file.read_text(encoding="utf-8") if file else os.environ[VARIABLE]
    except (OSError, ValueError) as error:
        raise FileError(f"can't read {file}: {first_line(error)}") from None
    token = text.strip()
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise ArgumentError(
            f"{file or VARIABLE} must have a token of ASCII characters without blanks"
        )
    return token
