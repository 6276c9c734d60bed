"""Folders of networks to and from the Hugging Face hub (needs the extra ``hub``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from snzoo.environment import is_set
from snzoo.errors import CheckpointError, ChecksumError, DownloadError, OfflineError, SnzooError
from snzoo.weights.cache import Digest
from snzoo.weights.folder import CARD, CONFIG, FILES, WEIGHTS, may_replace, missing_in

REPOSITORY = r"[\w.-]+/[\w.-]+"
REVISION = r"(?!.*\.\.)\w[\w./-]*"  # it becomes part of a path in the hub's cache


def download_folder(source: str) -> Path:
    """``hf-hub:OWNER/NAME[@REVISION]`` → its folder in the hub's own cache (``HF_HOME``).

    Only the weights, as safetensors, and the configuration are downloaded. The weights must
    have the sha256 that the hub names; it is compared at each use, where the cache has links.

    Raises:
        DownloadError: the hub can't be reached or has no such repository, revision or file.
        OfflineError: it is not cached, under ``SNZOO_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``.
        ChecksumError: the weights are not those that the hub has.
        SnzooError: the extra is not installed, or ``source`` is malformed.
    """
    found = re.fullmatch(f"hf-hub:({REPOSITORY})(?:@({REVISION}))?", source, re.ASCII)
    if not found:
        raise SnzooError(f"{source!r} is not of the form hf-hub:OWNER/NAME or …@REVISION")
    _check_installed()
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options["disable"] = options.get("disable") or None  # None: on a terminal only
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    with _told(source):
        folder = Path(
            snapshot_download(
                found[1],
                revision=found[2],
                allow_patterns=[CONFIG, WEIGHTS],
                local_files_only=_offline(),
                tqdm_class=Bar,
            )
        )
    if missing := missing_in(folder):
        raise DownloadError(f"{source} has no {missing}: it is none of snzoo.push_to_hub")
    _check(folder / WEIGHTS)
    return folder


def upload_folder(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """The three files of ``folder`` as one commit to ``repo``; returns its address.

    A model card that people wrote or edited stays.

    Raises:
        OfflineError: ``SNZOO_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``.
        DownloadError: the hub can't be reached, or refuses.
        SnzooError: the extra is not installed, or ``repo`` is public and shouldn't be.
    """
    if not re.fullmatch(REPOSITORY, repo, re.ASCII):
        raise SnzooError(f"{repo!r} is not of the form OWNER/NAME")
    _check_installed()
    if _offline():
        raise OfflineError(f"{repo}: nothing is uploaded under SNZOO_OFFLINE=1 or HF_HUB_OFFLINE=1")
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _told(repo):
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        # One that exists already stays as it is.
        if private and not api.model_info(repo).private:
            raise SnzooError(f"{repo} exists and is public; make it private there first")
        card = api.file_exists(repo, CARD) and not may_replace(
            Path(api.hf_hub_download(repo, CARD))
        )
        names = (WEIGHTS, CONFIG) if card else FILES
        files = [CommitOperationAdd(name, folder / name) for name in names]
        api.create_commit(repo, files, commit_message=message)
    return address


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Turns what the client raises into one line."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The errors of its HTTP library, which is requests, httpx or httpx2, come through too.
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        yield
    except failures as error:
        unfound = isinstance(error, LocalEntryNotFoundError)
        if unfound and _offline():
            raise OfflineError(
                f"{source} is not in the hub's cache, and SNZOO_OFFLINE=1 or HF_HUB_OFFLINE=1"
            ) from None
        cause = error.__cause__ or error if unfound else error  # why it looked in the cache
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, RevisionNotFoundError):
            reason = "there is no such revision"
        elif isinstance(cause, RepositoryNotFoundError) or status in (401, 403):
            reason = "there is no such repository, or no right to it; to log in: hf auth login"
        else:
            lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
            reason = lines[0] if lines else type(cause).__name__
            if status is None:
                reason += f" (the hub is {ENDPOINT})"
        raise DownloadError(f"{source}: {reason}") from None


def _offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return is_set("SNZOO_OFFLINE") or HF_HUB_OFFLINE


def _check(path: Path) -> None:
    """A large file is a link to one named by its sha256, which nothing else compares.

    That one may in turn be a link, to one named by another hash.
    """
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", name) and Digest.of(path).sha256 != name:
        raise ChecksumError(f"{path} is not what the hub has; remove {path.resolve()}")


def _check_installed() -> None:
    if not find_spec("huggingface_hub"):
        raise CheckpointError(
            "the Hugging Face hub needs huggingface_hub: pip install huggingface_hub "
            "(or the extra snzoo[hub])"
        )
