"""The cache folder: where things lie, who may write, and what was recorded of them.

$SNZOO_HOME/                     (default: ~/.cache/snzoo)
    checksums.lock.json          digests of files whose checksum was never published,
                                 recorded on first use and enforced ever after
    models/NAME/
        weights.safetensors      what the verified file held
        stamp.json               the digest of that file, and of the safetensors
        download.part            an unfinished download
    runs/                        records of unfinished evaluations (snzoo.evaluation.records)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from snzoo.errors import CacheError, ChecksumError
from snzoo.files import atomic_path, format_json
from snzoo.manifest import File

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Digest:
    """Identity of a file's content; ``size`` in bytes, ``md5`` only where it was asked for."""

    sha256: str
    size: int
    md5: str | None = None

    @classmethod
    def of(cls, path: Path, *, md5: bool = False) -> Digest:
        """Raises CacheError where the file can't be read."""
        try:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                file.seek(0)
                return cls(
                    sha256, size, hashlib.file_digest(file, "md5").hexdigest() if md5 else None
                )
        except OSError as error:
            raise CacheError(f"can't read {path}: {error.strerror}") from None

    def check(self, file: File, recorded: Digest | None) -> None:
        """Raises ChecksumError where this is not the published file, nor the recorded one."""
        pairs = [("size", self.size, file.size), ("sha256", self.sha256, file.sha256)]
        pairs.append(("md5", self.md5, file.md5))
        for what, found, published in pairs:
            if published is not None and found != published:
                raise ChecksumError(f"{what} is {found}, published: {published}")
        if not file.has_checksum and recorded is not None and self.sha256 != recorded.sha256:
            raise ChecksumError(
                f"sha256 is {self.sha256}, recorded on first use: {recorded.sha256}; if you trust "
                f"the new file, take the old checksum out of {_checksums_path()}"
            )


@dataclass(frozen=True)
class Stamp:
    """A cached safetensors file, and the published file that it was made from."""

    source: Digest
    weights: Digest
    mtime_ns: int


def home() -> Path:
    """``SNZOO_HOME``, else ``snzoo`` in the user's cache folder."""
    if chosen := os.environ.get("SNZOO_HOME"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:  # ~nobody/...
            raise CacheError(f"SNZOO_HOME={chosen}: {error}") from None
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "snzoo"


def runs() -> Path:
    return home() / "runs"


def unfinished_runs() -> int:
    """How many evaluations left a record, because they did not end."""
    return sum(1 for path in runs().iterdir() if path.is_dir()) if runs().is_dir() else 0


def prune_runs() -> None:
    """Remove the records of unfinished evaluations; raises CacheError."""
    with writing(runs()):
        shutil.rmtree(runs())


def folder_of(name: str) -> Path:
    return home() / "models" / name


def lock_of(name: str) -> FileLock:
    # Beside the folder: a lock that prune removed would no longer be the one others wait for.
    return FileLock(folder_of(name).with_name(f".{name}.lock"))


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """The folder of a model, made if need be, for this process alone.

    Raises:
        CacheError: it can't be made or written.
    """
    folder = folder_of(name)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_of(name)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logging.getLogger("snzoo").warning("waiting for another process with %s", name)
            lock.acquire()
        try:
            folder.mkdir(exist_ok=True)
            yield folder
        finally:
            with suppress(OSError):  # nothing came of it
                folder.rmdir()
            lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises into a CacheError."""
    advice = "make room, or set SNZOO_HOME to another folder"
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise CacheError(f"can't write {where}: {error.strerror or error}; {advice}") from None
    except SafetensorError as error:
        raise CacheError(f"can't write {path}: {error}; {advice}") from None


def read_stamp(name: str) -> Stamp | None:
    """The stamp of a cached model; None where there is none, or none that can be read."""
    try:
        fields = json.loads((folder_of(name) / "stamp.json").read_text(encoding="utf-8"))
        return Stamp(Digest(**fields["source"]), Digest(**fields["weights"]), fields["mtime_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stamp(name: str, stamp: Stamp) -> None:
    _write_json(folder_of(name) / "stamp.json", asdict(stamp))


def recorded() -> dict[str, Digest]:
    """Model name → the digest recorded on first use.

    Raises:
        CacheError: the file is damaged; it is never taken for an empty one.
    """
    path = _checksums_path()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: Digest(**fields) for name, fields in entries.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CacheError(
            f"can't read the recorded checksums in {path}: {error}; mend that file, "
            "or remove it to trust the next downloads anew"
        ) from None


def record(name: str, digest: Digest) -> None:
    with FileLock(home() / ".lock"):
        entries = {key: asdict(value) for key, value in recorded().items()}
        _write_json(_checksums_path(), entries | {name: asdict(digest)})


def _checksums_path() -> Path:
    return home() / "checksums.lock.json"


def _write_json(path: Path, document: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(format_json(document), encoding="utf-8")
