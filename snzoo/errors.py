"""What snzoo raises for people to read: one line that says what was wrong and what to do next."""


class SnzooError(Exception):
    """Base of all of them; the command line prints it without a traceback."""


class ManifestError(SnzooError):
    """The manifest is not what its schema says."""


class UnknownModelError(ManifestError):
    """No model of that name."""


class DownloadError(SnzooError):
    """No URL gave the file."""


class OfflineError(DownloadError):
    """The network was needed while SNZOO_OFFLINE=1."""


class ChecksumError(SnzooError):
    """A file's size or hash is not the expected one, or none is known where one is required."""


class CheckpointError(SnzooError):
    """A weights file can't be read, or doesn't fit the network."""


class CacheError(SnzooError):
    """The cache folder can't be read or written."""


class DataError(SnzooError):
    """Images or labels can't be read."""


def printable(text: str) -> str:
    """Text of any origin with its control characters escaped, safe to show and to encode."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
