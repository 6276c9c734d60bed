"""Provide verified weights from the package or the cache, and download them into the cache.

A published file is downloaded and verified, and its tensors are then installed into the cache. The
installation is an atomic rename, under a lock that processes share. A cached file that does not
match its stamp is never loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from torch import Tensor

from snzoo.entry import Entry, File
from snzoo.environment import is_set, require_packages
from snzoo.errors import (
    CheckpointError,
    ChecksumError,
    DownloadError,
    OfflineError,
    SnzooError,
)
from snzoo.files import atomic_path
from snzoo.weights import cache
from snzoo.weights.cache import WEIGHTS, discard
from snzoo.weights.checkpoint import read_state_dict, refuse_web_page
from snzoo.weights.checksums import (
    Digest,
    Stamp,
    read_stamp,
    record_checksum,
    recorded_checksums,
    write_stamp,
)
from snzoo.weights.conform import check_fingerprint, check_whole, conform_state_dict, nbytes_of
from snzoo.weights.safetensors import write_safetensors
from snzoo.weights.wrappers import StateDict

Layout = Callable[[], Mapping[str, Tensor]]  # called only when a new file must be checked
# A checkpoint may need this many times the memory of the network: it may hold float64, averaged
# weights, and the state of an optimizer.
HEADROOM = 8


@dataclass(frozen=True)
class Verified:
    """The tensors of a published file that passed every check, and the digest of that file."""

    state: StateDict
    digest: Digest


def fetch_weights(entry: Entry, layout: Layout) -> Path:
    """Return the path of the verified safetensors file of a model.

    The file is bundled with snzoo or cached. If it is neither, it is downloaded.

    Args:
        entry: the entry of the model in the manifest.
        layout: a function that returns the keys, shapes and dtypes of the published state dict.

    Raises:
        CheckpointError: no weights are published, or the file does not fit the network.
        ChecksumError: the file is not the published (or the recorded) one, or has no
            published checksum while ``SNZOO_REQUIRE_CHECKSUM=1``.
        DownloadError: no URL returned the file.
        OfflineError: the file is not cached, and ``SNZOO_OFFLINE=1``.
        MissingPackageError: the file is an HDF5 file, and h5py is not installed.
        CacheError: the cache can't be read or written.
    """
    file = _published_file(entry)
    if file.bundled is not None:
        return _check_bundled(file)
    if cached := _find_cached(entry):
        return cached
    if is_set("SNZOO_OFFLINE"):
        raise OfflineError(
            f"{entry.name} is missing or damaged in {cache.home()}, and SNZOO_OFFLINE=1; "
            f"run snzoo fetch {entry.name} with a network, or snzoo import FILE"
        )
    with cache.locked(entry.name) as folder:
        if cached := _find_cached(entry):  # another process was faster
            return cached
        part = folder / "download.part"
        path = _install(entry, _download(entry, part, layout))
        discard(part)  # only now, so that a full disk does not lose the download
        return path


def import_file(entry: Entry, path: Path, layout: Layout) -> Path:
    """Verify a file that was downloaded by hand, and install its weights into the cache.

    Args:
        entry: the entry of the model in the manifest.
        path: the path of the file, which is not changed.
        layout: a function that returns the keys, shapes and dtypes of the published state dict.

    Returns:
        The path of the cached safetensors file.

    Raises:
        CheckpointError, ChecksumError, CacheError: see :func:`fetch_weights`.
    """
    if _published_file(entry).bundled is not None:
        raise CheckpointError(f"{entry.name} is part of snzoo; there is nothing to import")
    with cache.locked(entry.name):
        try:
            verified = _verify_file(entry, path, layout)
        except (ChecksumError, CheckpointError) as error:
            raise type(error)(
                f"{path} is not the file of {entry.name}: {error}; see: snzoo info {entry.name}"
            ) from None
        return _install(entry, verified)


def verify(entry: Entry) -> Path | None:
    """Hash the bundled or cached file of a model again.

    Args:
        entry: the entry of the model in the manifest.

    Returns:
        The path of the file, or None if there is none.

    Raises:
        ChecksumError: the file is damaged, or not the published (or the recorded) one.
    """
    if entry.file is None:
        return None
    if entry.file.bundled is not None:
        return _check_bundled(entry.file)
    path = cache.folder_of(entry.name) / WEIGHTS
    if not os.path.exists(path):  # unlike Path.exists, returns False without permission
        return None
    stamp = read_stamp(entry.name)
    if stamp is None or Digest.of(path) != stamp.weights:
        raise ChecksumError(f"{path} is damaged; remove it with: snzoo cache prune {entry.name}")
    try:
        stamp.source.check(entry.file, _recorded_digest(entry))
    except ChecksumError as error:
        raise ChecksumError(
            f"{path} was made from another file: {error}; to replace it: snzoo fetch {entry.name}"
        ) from None
    return path


def _published_file(entry: Entry) -> File:
    """Return the published file of an entry. Raise an error if there is none to be used."""
    file = entry.file
    if file is None:
        raise CheckpointError(
            f"{entry.name} has no published weights; see: snzoo list --pretrained"
        )
    if is_set("SNZOO_REQUIRE_CHECKSUM") and not file.has_checksum:
        raise ChecksumError(
            f"no checksum of {entry.name} was ever published, and SNZOO_REQUIRE_CHECKSUM=1; "
            "to write the recorded one into a manifest: snzoo pin MANIFEST"
        )
    return file


def _recorded_digest(entry: Entry) -> Digest | None:
    """Return the digest recorded on first use, or None if a checksum is published."""
    published = entry.file is not None and entry.file.has_checksum
    return None if published else recorded_checksums().get(entry.name)


def _check_bundled(file: File) -> Path:
    assert file.bundled is not None
    path = Path(__file__).parents[1] / file.bundled
    try:
        Digest.of(path).check(file, None)
    except ChecksumError as error:
        raise ChecksumError(f"{path}: {error}; install snzoo again") from None
    return path


def _choose_action(
    file: File, recorded: Digest | None, stamp: Stamp | None, found: tuple[int, int] | None
) -> Literal["use", "hash", "download"]:
    """Return what to do with a cached file.

    Args:
        file: the published file.
        recorded: the digest recorded on first use, or None.
        stamp: the stamp of the cached file, or None.
        found: the size and the modification time of the cached file, or None if it is missing.
    """
    if stamp is None or found is None:
        return "download"
    try:
        stamp.source.check(file, recorded)
    except ChecksumError:
        return "download"  # it was made from another file
    return "use" if found == (stamp.weights.size, stamp.mtime_ns) else "hash"


def _find_cached(entry: Entry) -> Path | None:
    """Return the path of the cached file, or None if it must be downloaded (again)."""
    assert entry.file is not None
    path, stamp = cache.folder_of(entry.name) / WEIGHTS, read_stamp(entry.name)
    try:
        stat = path.stat()
    except OSError:
        return None
    found = stat.st_size, stat.st_mtime_ns
    action = _choose_action(entry.file, _recorded_digest(entry), stamp, found)
    if stamp is None or action == "download":
        return None
    if action == "hash":  # it was copied or touched
        if Digest.of(path) != stamp.weights:
            return None
        # Write the new time, so that the next process need not hash the file. Skip this if another
        # process holds the lock.
        with suppress(OSError), cache.lock_of(entry.name).acquire(timeout=0):
            if read_stamp(entry.name) == stamp:
                write_stamp(entry.name, replace(stamp, mtime_ns=stat.st_mtime_ns))
    return path


def _download(entry: Entry, part: Path, layout: Layout) -> Verified:
    """Download the file of an entry from the first URL that returns the right content."""
    file = _published_file(entry)
    if file.format == "keras":  # before the download, not after it
        require_packages("h5py", extra="keras", purpose=f"{entry.name}, an HDF5 file,")
    failures: list[str] = []
    error: SnzooError = DownloadError("no URL is known")
    for url in file.urls:
        try:
            return _download_from(url, entry, part, layout)
        except (DownloadError, ChecksumError, CheckpointError) as failure:
            error = failure
            failures.append(f"{urlsplit(url).hostname}: {failure}")
    # If two URLs on one host fail for the same reason, the message names it once.
    reasons = "; ".join(dict.fromkeys(failures)) or str(error)
    pages = " or ".join(file.pages or file.urls)
    raise type(error)(
        f"{entry.name}: {reasons}; download it by hand from {pages}, "
        f"then: snzoo import FILE --model {entry.name}"
    )


def _download_from(url: str, entry: Entry, part: Path, layout: Layout) -> Verified:
    from snzoo.weights.download import Request, download  # imports requests

    file = _published_file(entry)
    request = Request(url, part, entry.name, file.size, resume_blind=file.has_checksum)
    resumed = download(request)
    try:
        return _verify_part(entry, part, layout)
    except (ChecksumError, CheckpointError):
        if not resumed:
            raise
    download(request)  # starts again, because two versions may have been mixed
    return _verify_part(entry, part, layout)


def _verify_part(entry: Entry, part: Path, layout: Layout) -> Verified:
    try:
        return _verify_file(entry, part, layout)
    except (ChecksumError, CheckpointError):
        discard(part)
        raise


def _verify_file(entry: Entry, path: Path, layout: Layout) -> Verified:
    """Check a published file, and return its tensors in the order and dtypes of the layout."""
    file = _published_file(entry)
    digest = Digest.of(path, md5=file.md5 is not None)
    refuse_web_page(path)  # before its checksum, whose difference would not say what it is
    digest.check(file, _recorded_digest(entry))
    wanted = layout()
    state = conform_state_dict(
        read_state_dict(path, max_bytes=HEADROOM * nbytes_of(wanted)),
        wanted,
        where=path.name,
        exact_dtypes=not file.has_checksum,
    )
    # These checks matter for a file without a published checksum.
    check_fingerprint(state, file.fingerprint, where=path.name)
    if not file.has_checksum:
        check_whole(path, state)
    return Verified(state, digest)


def _install(entry: Entry, verified: Verified) -> Path:
    """Write verified tensors into the cache. The caller must hold the lock of the model."""
    file = _published_file(entry)
    path = cache.folder_of(entry.name) / WEIGHTS
    with cache.writing(path):
        for orphan in path.parent.glob(".snzoo-*"):  # a killed process left it
            orphan.unlink()
        with atomic_path(path) as temporary:
            write_safetensors(temporary, verified.state)
            weights = Digest.of(temporary)
        if not file.has_checksum and _recorded_digest(entry) is None:
            record_checksum(entry.name, verified.digest)
        write_stamp(entry.name, Stamp(verified.digest, weights, path.stat().st_mtime_ns))
    return path
