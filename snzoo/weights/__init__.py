"""URL → verified file → cache → state dict."""

from snzoo.weights.checkpoint import match, read_description, read_state
from snzoo.weights.folder import description_of, save_description, save_folder, weights_of
from snzoo.weights.store import import_file, obtain, pin, prune, stored, verify

__all__ = [
    "description_of",
    "import_file",
    "match",
    "obtain",
    "pin",
    "prune",
    "read_description",
    "read_state",
    "save_description",
    "save_folder",
    "stored",
    "verify",
    "weights_of",
]
