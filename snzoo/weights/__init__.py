"""URL → verified file → cache → state dict."""

from snzoo.weights.checkpoint import match, read_description, read_state
from snzoo.weights.store import import_file, obtain, pin, prune, stored, verify

__all__ = [
    "import_file",
    "match",
    "obtain",
    "pin",
    "prune",
    "read_description",
    "read_state",
    "stored",
    "verify",
]
