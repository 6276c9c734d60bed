"""Compute, compare and store checksums.

Published checksums are in the manifest. For a file without one, the checksum is recorded on first
use. The stamp of a cached file holds its checksums.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from snzoo.entry import File
from snzoo.errors import CacheError, ChecksumError, first_line
from snzoo.files import atomic_path, format_json, write_json
from snzoo.manifest import load_manifest
from snzoo.weights.cache import folder_of, home


@dataclass(frozen=True)
class Digest:
    """The size in bytes and the hashes of a file. ``md5`` is None unless it was asked for."""

    sha256: str
    size: int
    md5: str | None = None

    @classmethod
    def of(cls, path: Path, *, md5: bool = False) -> Digest:
        """Return the digest of a file.

        Raises:
            CacheError: the file cannot be read.
        """
        try:
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                file.seek(0)
                return cls(
                    sha256, size, hashlib.file_digest(file, "md5").hexdigest() if md5 else None
                )
        except OSError as error:
            raise CacheError(f"can't read {path}: {first_line(error)}") from None

    def check(self, file: File, recorded: Digest | None) -> None:
        """Compare the digest with the published checksum or, if there is none, the recorded one.

        Args:
            file: the published file.
            recorded: the digest recorded on first use, or None.

        Raises:
            ChecksumError: the digest differs.
        """
        pairs = [("size", self.size, file.size), ("sha256", self.sha256, file.sha256)]
        pairs.append(("md5", self.md5, file.md5))
        for what, found, published in pairs:
            if published is not None and found != published:
                raise ChecksumError(f"{what} is {found}, published: {published}")
        if not file.has_checksum and recorded is not None and self.sha256 != recorded.sha256:
            raise ChecksumError(
                f"sha256 is {self.sha256}, recorded on first use: {recorded.sha256}; if you trust "
                f"the new file, remove the old checksum from {_path_of_recorded()}"
            )


@dataclass(frozen=True)
class Stamp:
    """The digests of a cached model.

    Attributes:
        source: the digest of the published file.
        weights: the digest of the cached safetensors file.
        mtime_ns: the modification time of the cached file. The file is not hashed again while its
            size and modification time are the same.
    """

    source: Digest
    weights: Digest
    mtime_ns: int


def read_stamp(name: str) -> Stamp | None:
    """Return the stamp of a cached model, or None if it is missing or damaged."""
    try:
        fields = json.loads((folder_of(name) / "stamp.json").read_text(encoding="utf-8"))
        return Stamp(Digest(**fields["source"]), Digest(**fields["weights"]), fields["mtime_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stamp(name: str, stamp: Stamp) -> None:
    """Write the stamp of a cached model."""
    _write(folder_of(name) / "stamp.json", asdict(stamp))


def recorded_checksums() -> dict[str, Digest]:
    """Return a dict from the names of models to the digests recorded on first use.

    Raises:
        CacheError: the file of recorded checksums is damaged.
    """
    path = _path_of_recorded()
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: Digest(**fields) for name, fields in entries.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CacheError(
            f"can't read the recorded checksums in {path}: {first_line(error)}; repair that file, "
            "or remove it to trust the next downloads"
        ) from None


def record_checksum(name: str, digest: Digest) -> None:
    """Record the digest of a model's file. From then on, the file must have this digest."""
    with FileLock(home() / ".lock"):
        entries = {key: asdict(value) for key, value in recorded_checksums().items()}
        _write(_path_of_recorded(), entries | {name: asdict(digest)})


def pin(path: Path) -> list[str]:
    """Write recorded checksums into a manifest, for the models without a published checksum.

    Args:
        path: the path of the manifest, which is changed.

    Returns:
        The names of the models that got a checksum.

    Raises:
        ManifestError: ``path`` is not a manifest.
        FileError: ``path`` cannot be written.
    """
    models = load_manifest(path).models
    document = json.loads(path.read_text(encoding="utf-8"))
    recorded = recorded_checksums()
    pinned = []
    for name, entry in models.items():
        digest = recorded.get(name)
        if digest and entry.file and not entry.file.has_checksum:
            document["models"][name]["file"] |= {"sha256": digest.sha256, "size": digest.size}
            pinned.append(name)
    if pinned:
        write_json(path, document)
    return pinned


def _path_of_recorded() -> Path:
    return home() / "checksums.lock.json"


def _write(path: Path, document: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(format_json(document), encoding="utf-8")
