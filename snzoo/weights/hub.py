"""Folders of networks to and from the Hugging Face hub (needs the extra ``hub``)."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from snzoo.environment import is_set
from snzoo.errors import CheckpointError, ChecksumError, DownloadError, OfflineError, SnzooError
from snzoo.weights.cache import Digest
from snzoo.weights.folder import CARD, CONFIG, WEIGHTS


def download_folder(source: str) -> Path:
    """``hf-hub:OWNER/NAME[@REVISION]`` → its folder in the hub's own cache (``HF_HOME``).

    Only the weights, as safetensors, and the configuration are downloaded; the weights
    must have the sha256 that the hub names.

    Raises:
        DownloadError: the hub can't be reached or has no such repository, revision or file.
        OfflineError: it is not cached, and ``SNZOO_OFFLINE=1``.
        ChecksumError: the weights are not those that the hub has.
        SnzooError: the extra is not installed, or ``source`` is malformed.
    """
    found = re.fullmatch(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if not found:
        raise SnzooError(f"{source!r} is not of the form hf-hub:OWNER/NAME or …@REVISION")
    _check_installed()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    offline = is_set("SNZOO_OFFLINE")
    try:
        folder = Path(
            snapshot_download(
                found[1],
                revision=found[2],
                allow_patterns=[CONFIG, WEIGHTS],
                local_files_only=offline,
            )
        )
    except LocalEntryNotFoundError as error:
        if offline:
            raise OfflineError(f"{source} is not in the hub's cache, and SNZOO_OFFLINE=1") from None
        raise DownloadError(f"{source}: {_first_line(error)}") from None
    except (HFValidationError, OSError, ValueError) as error:  # httpx's and requests' among them
        raise DownloadError(f"{source}: {_first_line(error)}") from None
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DownloadError(f"{source} has no {name}: is it a network of snzoo?")
    _check(folder / WEIGHTS)
    return folder


def upload_folder(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Put the three files of ``folder`` into the repository ``repo``; returns its address.

    Raises:
        SnzooError: the extra is not installed, or the hub refuses.
    """
    _check_installed()
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[CONFIG, WEIGHTS, CARD],
            commit_message=message,
        )
    except (OSError, ValueError) as error:
        raise SnzooError(f"{repo}: {_first_line(error)}; see: hf auth login") from None
    return str(address)


def _check(path: Path) -> None:
    """In the hub's cache a large file's name is its sha256, which nothing else compares."""
    name = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", name) and Digest.of(path).sha256 != name:
        raise ChecksumError(f"{path} is not what the hub has; remove {path.resolve()}")


def _check_installed() -> None:
    if not find_spec("huggingface_hub"):
        raise CheckpointError("the hub needs huggingface_hub: pip install huggingface_hub")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
