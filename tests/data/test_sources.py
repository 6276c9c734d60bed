"""Files below a root: their content, or why it cannot be read."""

import os

import pytest

from snzoo.data import sources
from snzoo.data.remote import fetch_image
from snzoo.data.sources import Files
from snzoo.errors import DataError, DownloadError, OfflineError


def too_large(path):
    path.touch()
    os.truncate(path, sources.LARGEST + 1)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (too_large, "256 MiB, more than"),
    ],
    ids=["missing", "folder", "pipe", "broken link", "loop", "large"],
)
def test_an_unreadable_file_is_named_with_the_reason(tmp_path, make, reason):
    make(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=f"^can't read {tmp_path}/x.jpg: {reason}"):
        Files(tmp_path, ["x.jpg"]).read(0)


@pytest.mark.parametrize("name", ["a\nb\x1b[31m.jpg", "\udcff.jpg", "\0.jpg"])
def test_errors_about_any_name_are_one_line(tmp_path, name):
    with pytest.raises(DataError) as caught:
        Files(tmp_path, [name]).read(0)
    assert str(caught.value).isprintable() and str(caught.value).encode()


@pytest.mark.parametrize(
    "url, offline, error",
    [
        ("ftp://localhost/x.jpg", "0", DownloadError),
        ("http://", "0", DownloadError),
        ("http://localhost/x.jpg", "1", OfflineError),
    ],
)
def test_urls_that_cannot_be_fetched_are_named(monkeypatch, url, offline, error):
    monkeypatch.setenv("SNZOO_OFFLINE", offline)
    with pytest.raises(error, match=f"can't fetch {url}: "):
        fetch_image(url)
