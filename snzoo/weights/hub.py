"""Download folders of networks from the Hugging Face hub, and upload folders (extra ``hub``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snzoo.environment import is_set, require_packages
from snzoo.errors import (
    ArgumentError,
    ChecksumError,
    DownloadError,
    OfflineError,
    SnzooError,
    first_line,
)
from snzoo.weights.checksums import Digest
from snzoo.weights.folder import CARD, CONFIG, FILES, WEIGHTS, may_replace, missing_in

REPOSITORY = r"[\w.-]+/[\w.-]+"
REVISION = r"(?!.*\.\.)\w[\w./-]*"  # part of a path in the hub's cache


def download_folder(source: str) -> Path:
    """Download a repository if necessary, and return its folder in the hub's cache (``HF_HOME``).

    Only ``model.safetensors`` and ``config.json`` are downloaded. The weights must have the sha256
    that the hub names. At each use it is compared again, if the files in the cache are links.

    Args:
        source: the repository, as ``hf-hub:OWNER/NAME`` or ``hf-hub:OWNER/NAME@REVISION``.

    Raises:
        DownloadError: the hub cannot be reached, or has no such repository, revision or file.
        OfflineError: the repository is not cached, and ``SNZOO_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``.
        ChecksumError: the weights in the cache do not have this sha256.
        ArgumentError: ``source`` is malformed.
        MissingPackageError: huggingface_hub is not installed.
    """
    found = re.fullmatch(f"hf-hub:({REPOSITORY})(?:@({REVISION}))?", source, re.ASCII)
    if not found:
        raise ArgumentError(f"{source!r} is not of the form hf-hub:OWNER/NAME or …@REVISION")
    require_packages("huggingface_hub", extra="hub", purpose="the Hugging Face hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options["disable"] = options.get("disable") or None  # None: on a terminal only
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    with _explain_errors(source):
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
        raise DownloadError(f"{source} has no {missing}: snzoo.push_to_hub did not write it")
    _check_digest(folder / WEIGHTS)
    return folder


def upload_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool,
    commit_message: str,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload the weights, ``config.json`` and the model card as one commit.

    A model card that a user wrote or edited is not replaced. The arguments are those of
    :func:`snzoo.push_to_hub`.

    Returns:
        The address of the repository.

    Raises:
        OfflineError: ``SNZOO_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``.
        DownloadError: the hub cannot be reached, or refuses the upload.
        ArgumentError: ``repo_id`` is malformed, or the repository is public although ``private``
            is set.
        MissingPackageError: huggingface_hub is not installed.
    """
    if not re.fullmatch(REPOSITORY, repo_id, re.ASCII):
        raise ArgumentError(f"{repo_id!r} is not of the form OWNER/NAME")
    require_packages("huggingface_hub", extra="hub", purpose="the Hugging Face hub")
    if _offline():
        raise OfflineError(
            f"{repo_id}: nothing is uploaded while SNZOO_OFFLINE=1 or HF_HUB_OFFLINE=1"
        )
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    with _explain_errors(repo_id):
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        # create_repo leaves an existing repository as it is.
        if private and not api.model_info(repo_id).private:
            raise ArgumentError(f"{repo_id} exists and is public; make it private there first")
        card = api.file_exists(repo_id, CARD, revision=revision) and not may_replace(
            Path(api.hf_hub_download(repo_id, CARD, revision=revision))
        )
        names = (WEIGHTS, CONFIG) if card else FILES
        files = [CommitOperationAdd(name, folder / name) for name in names]
        api.create_commit(repo_id, files, commit_message=commit_message, revision=revision)
    return address


@contextmanager
def _explain_errors(source: str) -> Iterator[None]:
    """Raise the errors of huggingface_hub as errors of snzoo with a message of one line."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The errors of its HTTP library (requests, httpx or httpx2) are bases of HfHubHTTPError.
    failures: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, OSError, ValueError)
    try:
        yield
    except SnzooError:  # such as an ArgumentError, which is a ValueError too
        raise
    except failures as error:
        not_cached = isinstance(error, LocalEntryNotFoundError)
        if not_cached and _offline():
            raise OfflineError(
                f"{source} is not in the hub's cache, and SNZOO_OFFLINE=1 or HF_HUB_OFFLINE=1"
            ) from None
        # The cause says why huggingface_hub looked in the cache instead of on the hub.
        cause = error.__cause__ or error if not_cached else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(cause, RevisionNotFoundError):
            reason = "there is no such revision"
        elif isinstance(cause, RepositoryNotFoundError) or status in (401, 403):
            reason = "there is no such repository, or no right to it; to log in: hf auth login"
        else:
            reason = first_line(cause)
            if status is None:
                reason += f" (the hub is {ENDPOINT})"
        raise DownloadError(f"{source}: {reason}") from None


def _offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return is_set("SNZOO_OFFLINE") or HF_HUB_OFFLINE


def _check_digest(path: Path) -> None:
    """Compare the sha256 of a file with the name of the file that it links to.

    The hub's cache names large files by their sha256 and links to them. The target may be another
    link, to a file that is named by another hash.
    """
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", name) and Digest.of(path).sha256 != name:
        raise ChecksumError(f"{path} is not the file of the hub; remove {path.resolve()}")
