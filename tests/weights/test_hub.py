"""The Hugging Face hub, by a small stand-in for its HTTP API on loopback."""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from werkzeug import Response

import snzoo
from snzoo import environment
from snzoo.errors import ArgumentError, ChecksumError, DownloadError, OfflineError, SnzooError
from snzoo.weights import hub as client

REPO, TOKEN, CLASSES = "owner/name", "hf_secret", ["a", "b", "c"]
SOURCE = f"hf-hub:{REPO}"
VARIABLES = ("SNZOO_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN", "TRANSFORMERS_OFFLINE")


class Hub:
    """One repository: its commits, name → content, and what was asked for, by whom."""

    def __init__(self, server):
        self.port, self.commits, self.stored, self.seen = server.port, [], {}, []
        self.exists, self.private, self.refused = False, False, None
        server.expect_request(re.compile(".*")).respond_with_handler(self._answer)

    def commit(self, files):
        self.exists = True
        self.commits.append(files)
        return self.sha(-1)

    def sha(self, index):
        return hashlib.sha1(str(index % len(self.commits)).encode()).hexdigest()

    def paths(self, method="GET"):
        return [path for asked, path, _ in self.seen if asked == method]

    def _answer(self, request):
        path, storage = request.path, request.host.startswith("127.0.0.1")
        self.seen.append((request.method, path, request.headers.get("Authorization")))
        if storage and request.method == "PUT":
            self.stored[path] = request.data
            return Response()
        if storage:
            return Response(self.stored[path], mimetype="application/octet-stream")
        if self.refused and REPO in path:
            return self.refused
        if path == "/api/repos/create":
            status, self.exists = (409 if self.exists else 200), True
            return _json({"url": f"http://{request.host}/{REPO}"}, status)
        if path.endswith(("/preupload/main", "/objects/batch", "/commit/main", "/validate-yaml")):
            return self._upload(request)
        if not self.exists or REPO not in path:
            return Response(status=404, headers={"X-Error-Code": "RepoNotFound"})
        return self._download(path)

    def _upload(self, request):
        if request.path.endswith("/validate-yaml"):
            return _json({})
        if request.path.endswith("/preupload/main"):
            names = [file["path"] for file in request.json["files"]]
            return _json({"files": [_mode(name) for name in names]})
        if request.path.endswith("/objects/batch"):
            wanted = request.json["objects"]
            href = f"http://127.0.0.1:{self.port}/"
            return _json({"objects": [_put(item, href + item["oid"]) for item in wanted]})
        lines = [json.loads(line) for line in request.data.splitlines()]
        files = {
            value["path"]: base64.b64decode(value["content"])
            if "content" in value
            else self.stored["/" + value["oid"]]
            for value in (line["value"] for line in lines[1:])
        }
        oid = self.commit((self.commits[-1] if self.commits else {}) | files)
        return _json({"commitOid": oid, "commitUrl": f"http://{request.host}/{REPO}/commit/{oid}"})

    def _download(self, path):
        found = re.fullmatch(
            f"(?:/api/models)?/{REPO}(?:/(revision|tree|resolve)/([^/]*)(?:/(.*))?)?", path
        )
        what, revision, name = found.groups()
        known = {self.sha(i): i for i in range(len(self.commits))} | {"main": -1, "first": 0}
        if revision and revision not in known:
            return Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        index = known[revision or "main"]
        sha, files = (self.sha(index), self.commits[index]) if self.commits else ("0" * 40, {})
        if what in (None, "revision"):
            siblings = [{"rfilename": name} for name in files]  # what older clients list
            return _json({"id": REPO, "sha": sha, "private": self.private, "siblings": siblings})
        if what == "tree":
            return _json([_item(name, content) for name, content in files.items()])
        if name not in files:
            return Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_sha1(files[name])}"'}
        if not name.endswith(".safetensors"):
            return Response(files[name], headers=headers)
        oid = _sha256(files[name])
        self.stored.setdefault("/" + oid, files[name])
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(files[name]))}
        headers["Location"] = f"http://127.0.0.1:{self.port}/{oid}"
        return Response(status=302, headers=headers)


def _json(document, status=200):
    return Response(json.dumps(document), status, mimetype="application/json")


def _mode(name):
    large = name.endswith(".safetensors")
    return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


def _put(item, href):
    return item | {"actions": {"upload": {"href": href}}}


def _item(name, content):
    item = {"type": "file", "path": name, "size": len(content), "oid": _sha1(content)}
    if name.endswith((".safetensors", ".bin")):
        item["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return item


def _sha1(content):
    return hashlib.sha1(content).hexdigest()


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def forget():
    """The client reads its environment when it is imported: the next use imports it anew."""
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]


@pytest.fixture
def hub(httpserver, monkeypatch, tmp_path):
    before = {k: v for k, v in sys.modules.items() if k.split(".")[0] == "huggingface_hub"}
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    settings = {"HF_ENDPOINT": f"http://localhost:{httpserver.port}", "NO_PROXY": "*"}
    settings |= {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    forget()
    yield Hub(httpserver)
    forget()
    sys.modules.update(before)


@pytest.fixture
def unreachable(monkeypatch):
    """Nobody answers from the moment it is called."""

    def cut():
        with socket.socket() as closed:
            closed.bind(("localhost", 0))
            monkeypatch.setenv("HF_ENDPOINT", f"http://localhost:{closed.getsockname()[1]}")
        forget()

    return cut


@pytest.fixture
def network():
    torch.manual_seed(1)
    return snzoo.create_model("resnet18v1_sn", width=8, num_classes=3).eval()


@pytest.fixture
def published(hub, network, tmp_path):
    """Two commits; the network is that of the second, the tag ``first`` stands on the other."""
    other = snzoo.create_model("resnet18v1_sn", width=8, num_classes=3)
    for saved in (other, network):
        snzoo.save_pretrained(saved, tmp_path / "saved", classes=CLASSES)
        names = ["config.json", "model.safetensors", "README.md"]
        files = {name: (tmp_path / "saved" / name).read_bytes() for name in names}
        hub.commit(files | {"pytorch_model.bin": b"cos\nsystem\n(S'false'\ntR."})
    return hub


def same(network, other):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return torch.equal(network.eval()(x), other.eval()(x))


def push(network, **options):
    return snzoo.push_to_hub(network, REPO, classes=CLASSES, **options)


def damaged(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_pushed_network_comes_back(hub, network, capfd):
    address = push(network)
    assert address == f"http://localhost:{hub.port}/{REPO}"
    assert capfd.readouterr().out == ""  # the client's progress is on stderr
    [files] = hub.commits  # one commit, for a reader must not find half of it
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert f'snzoo.create_model("{SOURCE}")' in files["README.md"].decode()
    assert same(snzoo.create_model(SOURCE), network)
    assert snzoo.create_model(SOURCE, num_classes=7).num_classes == 7
    assert same(snzoo.create_model("resnet18v1_sn", weights=SOURCE), network)
    assert capfd.readouterr() == ("", "")


def test_the_token_goes_to_the_hub_alone(hub, network):
    push(network)
    snzoo.create_model(SOURCE)
    tokens = {path: token for _, path, token in hub.seen}
    [stored] = hub.stored
    assert tokens.pop(stored) is None
    tokens.pop("/api/agent-harnesses", None)  # the client's own question
    assert set(tokens.values()) == {f"Bearer {TOKEN}"}


def test_a_network_is_pushed_again_over_the_first_under_its_card(hub, network):
    push(network)
    push(network, commit_message="Again")
    hub.commits[1]["README.md"] = b"edited by people"
    network.fc.bias.data += 1
    push(network, commit_message="Second")
    assert len(hub.commits) == 3 and same(snzoo.create_model(SOURCE), network)
    assert hub.commits[2]["README.md"] == b"edited by people"
    assert not same(snzoo.create_model(f"{SOURCE}@first"), network)


def test_what_shall_be_private_is_not_pushed_to_a_public_repository(hub, network):
    hub.exists = True
    with pytest.raises(ArgumentError, match="owner/name exists and is public"):
        push(network, private=True)
    assert not hub.commits and not hub.stored
    hub.private = True
    push(network, private=True)
    assert len(hub.commits) == 1


def test_only_weights_and_configuration_are_downloaded(published, network, tmp_path):
    assert same(snzoo.create_model(SOURCE), network)
    assert not any(path.endswith((".bin", ".md")) for path in published.paths())
    assert not list((tmp_path / "hf").rglob("*.bin"))


def test_a_revision_is_chosen(published, network):
    assert not same(snzoo.create_model(f"{SOURCE}@first"), network)
    assert same(snzoo.create_model(f"{SOURCE}@{published.sha(1)}"), network)
    with pytest.raises(DownloadError, match=r"owner/name@second: there is no such revision"):
        snzoo.create_model(f"{SOURCE}@second")


@pytest.mark.parametrize("how", ["SNZOO_OFFLINE", "HF_HUB_OFFLINE", "no network"])
def test_the_second_use_needs_no_network(published, network, unreachable, monkeypatch, how):
    snzoo.create_model(SOURCE)
    published.seen.clear()
    if how == "no network":
        unreachable()
    else:
        monkeypatch.setenv(how, "1")
        forget()
    assert same(snzoo.create_model(SOURCE), network)
    assert published.seen == []


@pytest.mark.parametrize("variable", ["SNZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_downloaded_or_uploaded(published, network, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    forget()
    with pytest.raises(OfflineError, match="owner/name is not in the hub's cache, and SNZOO_OFF"):
        snzoo.create_model(SOURCE)
    with pytest.raises(OfflineError, match="nothing is uploaded"):
        push(network)
    assert published.seen == []


def test_damaged_weights_are_refused_until_they_are_removed(published, network):
    snzoo.create_model(SOURCE)
    blob = (client.download_folder(SOURCE) / "model.safetensors").resolve()
    blob.write_bytes(damaged(blob.read_bytes()))
    with pytest.raises(ChecksumError, match=f"is not the file of the hub; remove {blob}"):
        snzoo.create_model(SOURCE)
    blob.unlink()
    assert same(snzoo.create_model(SOURCE), network)


def test_weights_that_are_damaged_on_the_way_are_refused(published):
    weights = published.commits[-1]["model.safetensors"]
    published.stored["/" + _sha256(weights)] = damaged(weights)
    with pytest.raises(ChecksumError, match="is not the file of the hub"):
        snzoo.create_model(SOURCE)


def test_a_cache_whose_files_are_links_in_turn_is_read(published, network):
    """So they are where the client deduplicates them, by another hash than sha256."""
    snzoo.create_model(SOURCE)
    blob = (client.download_folder(SOURCE) / "model.safetensors").resolve()
    shared = blob.with_name("0" * 64)
    blob.rename(shared)
    blob.symlink_to(shared.name)
    assert same(snzoo.create_model(SOURCE), network)
    shared.write_bytes(damaged(shared.read_bytes()))
    with pytest.raises(ChecksumError):
        snzoo.create_model(SOURCE)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_repository_without_a_network_is_none(published, name):
    del published.commits[-1][name]
    with pytest.raises(DownloadError, match=f"owner/name has no {name}: snzoo.push"):
        snzoo.create_model(SOURCE)


@pytest.mark.parametrize(
    "status, headers",
    [
        (404, {"X-Error-Code": "RepoNotFound"}),
        (401, {"X-Error-Code": "RepoNotFound"}),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        (403, {"X-Error-Code": "GatedRepo"}),
        (403, {}),
    ],
)
def test_a_refusal_says_to_log_in(published, network, status, headers):
    published.refused = Response(status=status, headers=headers)
    for act in (
        lambda: snzoo.create_model(SOURCE),
        lambda: push(network),
    ):
        with pytest.raises(DownloadError, match=r"^(hf-hub:)?owner/name: .*hf auth login$"):
            act()


def test_no_connection_is_one_line(hub, network, unreachable):
    unreachable()
    for act in (
        lambda: snzoo.create_model(SOURCE),
        lambda: push(network),
    ):
        with pytest.raises(DownloadError, match=r"^(hf-hub:)?owner/name: .*[Cc]onnection refused"):
            act()


@pytest.mark.parametrize(
    "source",
    ["", "name", "a/b/c", "a/b@", "a/b@../../x", "a/b@/x", "../x", "a/b\n", "ä/b"],
)
def test_a_malformed_source_is_refused(hub, source):
    with pytest.raises(SnzooError, match="hf-hub:"):
        snzoo.create_model(f"hf-hub:{source}")
    assert hub.seen == []


def test_a_malformed_repository_is_refused_before_anything_is_sent(hub, network):
    for repo in ("name", "a/b/c", "../x", "a/b@main", ""):
        with pytest.raises(SnzooError, match=r"OWNER/NAME|alphanumeric"):
            snzoo.push_to_hub(network, repo, classes=CLASSES)
    assert hub.seen == []


def test_without_the_extra_it_is_named(hub, network, monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    for act in (lambda: snzoo.create_model(SOURCE), lambda: push(network)):
        with pytest.raises(SnzooError, match=r"needs huggingface_hub: .*snzoo\[hub\]"):
            act()


def test_the_command_line_predicts_from_the_hub(published, unreachable):
    photo = next((Path(snzoo.__file__).parent / "demo" / "photos").rglob("*.jpg"))
    status, out, err = run("-m", "snzoo", "predict", "--model", SOURCE, photo, "--json")
    names = {found["name"] for found in json.loads(out)[0]["classes"]}
    assert (status, err, names) == (0, "", set(CLASSES))
    unreachable()
    missing = f"{SOURCE}x"
    status, out, err = run("-m", "snzoo", "predict", "--weights", missing, photo)
    assert (status, out) == (1, "") and err.startswith(f"snzoo: {missing}: ")
    assert len(err.splitlines()) == 1
