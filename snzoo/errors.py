"""Exceptions of snzoo. Each message is one line that says what is wrong and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SnzooError(Exception):
    """Base class of all exceptions of snzoo. The command line prints them without a traceback."""


class ArgumentError(SnzooError, ValueError):
    """An argument or option has a value that is not allowed."""


class UnexpectedArgumentError(SnzooError, TypeError):
    """An argument is unknown, or its type is wrong."""


class ManifestError(SnzooError, ValueError):
    """The manifest, or another JSON document, does not follow its schema."""


class UnknownModelError(SnzooError, ValueError):
    """No model has this name."""


class MissingPackageError(SnzooError, ImportError):
    """An optional package is not installed."""


class DeviceError(SnzooError, RuntimeError):
    """The device cannot be used, or its memory is too small."""


class NonFiniteError(SnzooError, ArithmeticError):
    """A network returned logits or embeddings that are not finite."""


class DownloadError(SnzooError):
    """No URL returned the file."""


class OfflineError(DownloadError):
    """The network is needed, but ``SNZOO_OFFLINE=1`` forbids it."""


class ChecksumError(SnzooError):
    """The size or the hash of a file is wrong, or a required checksum is unknown."""


class CheckpointError(SnzooError):
    """A weights file cannot be read, or does not match the network."""


class CacheError(SnzooError):
    """The cache folder cannot be read or written."""


class FileError(SnzooError):
    """A file that the user named cannot be read or written."""


class DataError(SnzooError):
    """Images or labels cannot be read."""


class InputError(DataError):
    """A folder, an archive or another input of photos cannot be read as a whole."""


class Interrupted(KeyboardInterrupt):
    """The user pressed Ctrl-C; the message says how much was done and how to go on."""


class ServerError(SnzooError):
    """The server cannot listen on its address."""


def suggest(name: str, known: Iterable[str], *, otherwise: str = "it takes") -> str:
    """Return a hint on an unknown name: the most similar known name, or all known names.

    Args:
        name: the unknown name.
        known: the known names.
        otherwise: what precedes the known names if none is similar.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(known)}"


def printable(text: str) -> str:
    """Return ``text`` with escaped control characters, so that it is safe to print."""
    if text.isprintable():  # the usual case, and fast
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if that is empty."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return printable(str(reason).splitlines()[0].strip())
