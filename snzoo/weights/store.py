"""Verified weights: from the package, from the cache, or from the network into the cache.

A file enters the cache by atomic rename, after it was verified, under a lock that
processes share. What does not fit its stamp is never loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from snzoo.environment import is_set
from snzoo.errors import (
    CacheError,
    CheckpointError,
    ChecksumError,
    DownloadError,
    OfflineError,
)
from snzoo.files import write_json
from snzoo.manifest import Entry, File, load_manifest
from snzoo.weights import cache
from snzoo.weights.cache import WEIGHTS, Digest, Stamp
from snzoo.weights.checkpoint import check_fingerprint, check_whole, match, read_state

Layout = Callable[[], Mapping[str, Tensor]]  # called only where a new file must be checked


def obtain(entry: Entry, layout: Layout) -> Path:
    """The verified safetensors file of ``entry``: bundled, cached, or downloaded now.

    Args:
        layout: gives the published state dict's keys, shapes and dtypes.

    Raises:
        CheckpointError: no weights are published, or the file does not fit the network.
        ChecksumError: the file is not the published (or the recorded) one, or has no
            published checksum while ``SNZOO_REQUIRE_CHECKSUM=1``.
        DownloadError: no URL gave the file.
        OfflineError: it is not cached, and ``SNZOO_OFFLINE=1``.
        CacheError: the cache can't be written.
    """
    file = _weights_file(entry)
    if file.bundled is not None:
        return _bundled(file)
    if cached := _cached(entry):
        return cached
    if is_set("SNZOO_OFFLINE"):
        raise OfflineError(
            f"{entry.name} is not in {cache.home()}, or not whole there, and SNZOO_OFFLINE=1; "
            f"run snzoo fetch {entry.name} with a network, or snzoo import FILE"
        )
    with cache.locked(entry.name) as folder:
        # Another process may have been quicker.
        return _cached(entry) or _download(entry, folder / "download.part", layout)


def import_file(entry: Entry, path: Path, layout: Layout) -> Path:
    """Verify a file that was downloaded by hand and put it into the cache.

    Raises:
        CheckpointError, ChecksumError, CacheError: as :func:`obtain`; ``path`` is left alone.
    """
    if _weights_file(entry).bundled is not None:
        raise CheckpointError(f"{entry.name} is part of snzoo; there is nothing to import")
    with cache.locked(entry.name):
        try:
            return _install(entry, path, layout)
        except (ChecksumError, CheckpointError) as error:
            raise type(error)(
                f"{path} is not the file of {entry.name}: {error}; see: snzoo info {entry.name}"
            ) from None


def verify(entry: Entry) -> Path | None:
    """Hash the stored file of ``entry`` again; None where none is stored.

    Raises:
        ChecksumError: it is damaged, or not the published (or the recorded) one.
    """
    if entry.file is None:
        return None
    if entry.file.bundled is not None:
        return _bundled(entry.file)
    path = cache.folder_of(entry.name) / WEIGHTS
    if not os.path.exists(path):  # unlike Path.exists, False where it may not look
        return None
    stamp = cache.read_stamp(entry.name)
    if stamp is None or Digest.of(path) != stamp.weights:
        raise ChecksumError(f"{path} is damaged; remove it with: snzoo cache prune {entry.name}")
    try:
        stamp.source.check(entry.file, _recorded(entry))
    except ChecksumError as error:
        raise ChecksumError(
            f"{path} was made from another file: {error}; to replace it: snzoo fetch {entry.name}"
        ) from None
    return path


def stored() -> dict[str, int]:
    """Name → bytes on disk, of every model in the cache (unfinished downloads too)."""
    models = cache.home() / "models"
    try:
        folders = [path for path in models.iterdir() if path.is_dir()] if models.is_dir() else []
        return {
            folder.name: sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            for folder in sorted(folders)
        }
    except OSError as error:
        raise CacheError(f"can't read {error.filename}: {error.strerror}") from None


def prune(name: str) -> None:
    """Remove a model from the cache; its recorded checksum stays, and stays in force.

    Raises:
        CacheError: it is not there, or can't be removed.
    """
    if name not in stored():  # a path, perhaps
        raise CacheError(f"{name!r} is not in the cache; see: snzoo cache list")
    with cache.locked(name) as folder:
        shutil.rmtree(folder)


def pin(path: Path) -> list[str]:
    """Write the recorded checksums into a manifest, where it has none; returns the names.

    Raises:
        ManifestError: ``path`` is no manifest.
        FileError: it can't be written.
    """
    models = load_manifest(path).models
    document = json.loads(path.read_text(encoding="utf-8"))
    pinned = []
    for name, entry in models.items():
        digest = cache.recorded().get(name)
        if digest and entry.file and not entry.file.has_checksum:
            document["models"][name]["file"] |= {"sha256": digest.sha256, "size": digest.size}
            pinned.append(name)
    if pinned:
        write_json(path, document)
    return pinned


def _weights_file(entry: Entry) -> File:
    """The file of an entry, if snzoo may and can read it."""
    file = entry.file
    if file is None:
        raise CheckpointError(
            f"{entry.name} has no published weights; see: snzoo list --pretrained"
        )
    if not file.is_readable:
        raise CheckpointError(
            f"{entry.name} is published as a {file.format} file, which snzoo does not read; "
            "convert it to a PyTorch state dict and name that with --weights"
        )
    if is_set("SNZOO_REQUIRE_CHECKSUM") and not file.has_checksum:
        raise ChecksumError(
            f"no checksum of {entry.name} was ever published, and SNZOO_REQUIRE_CHECKSUM=1; "
            "to write the recorded one into a manifest: snzoo pin MANIFEST"
        )
    return file


def _recorded(entry: Entry) -> Digest | None:
    """The digest of the first use, where it is what counts."""
    published = entry.file is not None and entry.file.has_checksum
    return None if published else cache.recorded().get(entry.name)


def _bundled(file: File) -> Path:
    assert file.bundled is not None
    path = Path(__file__).parents[1] / file.bundled
    try:
        Digest.of(path).check(file, None)
    except ChecksumError as error:
        raise ChecksumError(f"{path}: {error}; install snzoo again") from None
    return path


def _cached(entry: Entry) -> Path | None:
    """The cached file, if it is whole and was made from the right published file."""
    path = cache.folder_of(entry.name) / WEIGHTS
    stamp = cache.read_stamp(entry.name)
    assert entry.file is not None
    if stamp is None:
        return None
    try:
        stamp.source.check(entry.file, _recorded(entry))
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (stamp.weights.size, stamp.mtime_ns):
            return path
        if Digest.of(path) != stamp.weights:
            return None
    except (OSError, ChecksumError):
        return None
    # Copied or touched, but whole: spare the next process the hash, where nobody is at work.
    with suppress(OSError), cache.lock_of(entry.name).acquire(timeout=0):
        if cache.read_stamp(entry.name) == stamp:
            cache.write_stamp(entry.name, replace(stamp, mtime_ns=stat.st_mtime_ns))
    return path


def _download(entry: Entry, part: Path, layout: Layout) -> Path:
    from snzoo.weights.download import Request, download  # requests: of no use to a full cache

    file = _weights_file(entry)
    if file.format == "keras" and not find_spec("h5py"):  # before the download, not after it
        raise CheckpointError(f"{entry.name} is an HDF5 file; to read it: pip install h5py")
    request = Request(
        part=part,
        title=entry.name,
        size=file.size,
        accept=lambda path: _install(entry, path, layout),
        resume_blind=file.has_checksum,
    )
    try:
        return download(file.urls, request)
    except (DownloadError, ChecksumError, CheckpointError) as error:
        pages = " or ".join(file.pages or file.urls)
        raise type(error)(
            f"{entry.name}: {error}; download it by hand from {pages}, "
            f"then: snzoo import FILE --model {entry.name}"
        ) from None


def _install(entry: Entry, path: Path, layout: Layout) -> Path:
    """Published file → verified safetensors in the cache; the caller holds the lock."""
    file = _weights_file(entry)
    known = _recorded(entry)
    digest = Digest.of(path, md5=file.md5 is not None)
    digest.check(file, known)
    # Without a checksum, whatever else is known of the file must agree.
    state = match(read_state(path), layout(), where=path.name, exact_dtypes=not file.has_checksum)
    check_fingerprint(state, file.fingerprint, where=path.name)
    if not file.has_checksum:
        check_whole(path, state)

    folder = cache.folder_of(entry.name)
    weights, partial = folder / WEIGHTS, folder / "weights.partial"
    with cache.writing(partial):
        try:
            save_file(state, partial)
            partial.chmod(folder.stat().st_mode & 0o666)  # readable by whom the folder is
            with open(partial, "rb") as written:  # on the disk before its name is
                os.fsync(written.fileno())
            stamp = Stamp(digest, Digest.of(partial), partial.stat().st_mtime_ns)
            partial.replace(weights)
        finally:
            partial.unlink(missing_ok=True)
        if not file.has_checksum and known is None:
            cache.record(entry.name, digest)
        cache.write_stamp(entry.name, stamp)
    return weights
