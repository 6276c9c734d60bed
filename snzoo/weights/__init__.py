"""Download, verify, cache and read weights."""

from snzoo.weights.cache import prune, stored
from snzoo.weights.checkpoint import read_description, read_state_dict
from snzoo.weights.checksums import pin
from snzoo.weights.conform import conform_state_dict
from snzoo.weights.folder import description_of, save_description, save_folder, weights_of
from snzoo.weights.store import fetch_weights, import_file, verify

__all__ = [
    "conform_state_dict",
    "description_of",
    "fetch_weights",
    "import_file",
    "pin",
    "prune",
    "read_description",
    "read_state_dict",
    "save_description",
    "save_folder",
    "stored",
    "verify",
    "weights_of",
]
