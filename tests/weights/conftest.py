"""A small model, real checkpoint files of it, and local HTTP servers that can misbehave."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from fbtorch_writer import resnet50, torch7_of
from safetensors.torch import load_file
from werkzeug import Response
from werkzeug.exceptions import RequestedRangeNotSatisfiable

from snzoo.cli import main
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.weights import download

NAME, FILE, PAGE = "made", "made.pth", "https://example.org/made"
CLASSES = ["cat", "dog", "cow"]
RECIPE = {
    "resize": 64,
    "crop": 64,
    "channel_order": "RGB",
    "scale": 1,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


@dataclass(frozen=True)
class Result:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


class Mirror:
    """A local URL that gives the answers of a list in turn, and then repeats the last one."""

    def __init__(self, server, path):
        self.url, self.seen, self.script = server.url_for(path), [], []
        server.expect_request(path).respond_with_handler(self._answer)

    def answers(self, *script):
        self.seen, self.script = [], list(script)

    def _answer(self, request):
        self.seen.append(request.headers)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return answer(request)

    @property
    def offsets(self):
        """The first byte that each request asked for, or None for the whole file."""
        ranges = [headers.get("Range") for headers in self.seen]
        return [found and int(found.removeprefix("bytes=").removesuffix("-")) for found in ranges]

    @staticmethod
    def file(content, *, etag="one", modified=None, cut=None, ranges=True):
        """Serve a file (with Range, If-Range); the connection drops after ``cut`` bytes."""

        def answer(request):
            response = Response(content, mimetype="application/octet-stream")
            if modified:
                response.last_modified = modified
            if etag:
                response.set_etag(etag)
            try:
                response.make_conditional(request, ranges, len(content))
            except RequestedRangeNotSatisfiable as error:
                return error.get_response()
            length = response.headers["Content-Length"]
            response.set_data(response.get_data()[:cut])
            response.headers["Content-Length"] = length
            return response

        return answer

    @staticmethod
    def reply(status, body=b"", **headers):
        """Give a fixed answer; ``Content_Type`` stands for Content-Type."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return lambda request: Response(body, status, named)


class Zoo:
    """A manifest with one model, a cache folder, and the command line over both."""

    def __init__(self, folder, capsys, mirror):
        self.home, self.manifest = folder / "home", folder / "manifest.json"
        self.capsys, self.mirror = capsys, mirror
        self.prefix = []

    def publish(self, content=None, *, known=True, architecture="resnet18v1_sn", **fields):
        """Write the manifest, and let the mirror serve ``content`` from now on.

        ``known``: whether its sha256 and size are published; ``fields`` override them.
        """
        file = {"name": FILE, "format": "pytorch", "urls": [self.mirror.url], "pages": [PAGE]}
        file |= {"sha256": None, "md5": None, "size": None}
        if content is not None:
            self.mirror.answers(self.mirror.file(content))
            if known:
                file |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        entry = {
            "architecture": architecture,
            "arguments": {"width": 8},
            "num_params": None,
            "classes": CLASSES,
            "preprocessing": "small",
            "file": file | fields,
            "published": [],
            "training": None,
            "license": None,
            "provenance": "Made for a test.",
        }
        document = {"schema_version": 1, "preprocessing": {"small": RECIPE, "imagenet": RECIPE}}
        self.manifest.write_text(json.dumps(document | {"models": {NAME: entry}}))

    def run(self, *arguments):
        """Run a command in this process or, after :meth:`lock`, in one that is not root."""
        if self.prefix:
            return self.spawn(*arguments)
        self.capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Result(status, *self.capsys.readouterr())

    def spawn(self, *arguments, **options):
        """Run a command in a new process."""
        command = [*self.prefix, sys.executable, "-m", "snzoo", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
        return Result(done.returncode, done.stdout, done.stderr)

    @property
    def folder(self):
        return self.home / "models" / NAME

    @property
    def weights(self):
        return self.folder / "weights.safetensors"

    @property
    def part(self):
        return self.folder / "download.part"

    def lock(self, *folders):
        """Make folders read-only, and let ``run`` give up the right of root to write there."""
        for folder in folders:
            folder.chmod(0o555)
        if os.access(folders[0], os.W_OK):
            if not shutil.which("setpriv"):
                pytest.skip("this user may write anywhere, and there is no setpriv")
            rights = "-dac_override,-dac_read_search"
            self.prefix = ["setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}"]

    def unlock(self, folder):
        """Make a folder writable again, and let ``run`` stay in this process."""
        folder.chmod(0o755)
        self.prefix = []

    def kept(self):
        """Return the cached files, name → bytes."""
        paths = [self.weights, self.folder / "stamp.json"]
        return {path.name: path.read_bytes() for path in paths if path.exists()}

    def refuses(self, result, *words, keeps=None):
        """Assert that a command failed with one line of these words; the cache is unchanged."""
        assert result.status == 1
        assert result.err.startswith("snzoo: ") and len(result.err.splitlines()) == 1, result.err
        assert [word for word in words if word not in result.err] == [], result.err
        assert "Traceback" not in result.err and "--debug" not in result.err
        assert self.kept() == (keeps or {})

    def holds(self, state, result=None):
        """Assert that a command succeeded silently, and that the cache has these tensors."""
        assert result is None or (result.status, result.err) == (0, "")
        assert not self.part.exists() and set(self.kept()) == {"weights.safetensors", "stamp.json"}
        cached = load_file(self.weights)
        assert cached.keys() == state.keys()
        assert all(torch.equal(cached[key], state[key]) for key in state)


@pytest.fixture(scope="session")
def state():
    """A state dict of the small model, with statistics that a new network does not have."""
    torch.manual_seed(7)
    network = build(ARCHITECTURES["resnet18v1_sn"], width=8, num_classes=len(CLASSES))
    return {key: torch.rand_like(value) for key, value in network.state_dict().items()}


@pytest.fixture(scope="session")
def saved():
    """A function that returns what torch.save writes, as bytes."""

    def save(content, **options):
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        return buffer.getvalue()

    return save


@pytest.fixture(scope="session")
def content(saved, state):
    """The file of the small model; its download takes three chunks."""
    return saved(state)


@pytest.fixture
def mirrors(httpserver):
    """Two mirrors, in the order of the manifest."""
    return Mirror(httpserver, f"/first/{FILE}"), Mirror(httpserver, f"/second/{FILE}")


@pytest.fixture
def mirror(mirrors):
    return mirrors[0]


@pytest.fixture
def zoo(tmp_path, monkeypatch, capsys, mirror):
    zoo = Zoo(tmp_path, capsys, mirror)
    monkeypatch.setenv("SNZOO_HOME", str(zoo.home))
    monkeypatch.setenv("SNZOO_MANIFEST", str(zoo.manifest))
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("SNZOO_OFFLINE", "SNZOO_REQUIRE_CHECKSUM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    return zoo


@pytest.fixture
def cached(zoo, mirror, content):
    """The zoo with the small model in its cache; the mirror fails from now on."""
    zoo.publish(content)
    assert zoo.run("fetch", "made").status == 0
    mirror.answers(mirror.reply(500))
    return zoo


@pytest.fixture(scope="session")
def tree():
    """What Torch7 saves for a narrow ResNet-50 of fb.resnet.torch."""
    return torch7_of(resnet50())
