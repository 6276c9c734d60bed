"""Documents as snzoo eval writes them, pages made of them, and a browser to look at those with."""

import html
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from math import sqrt

import pytest
from chromium import OPTIONS, find_browser
from PIL import Image

from snzoo.cli import main

VOID = {"meta", "link", "img", "br", "wbr"}
RECIPE = {
    "resize": 256,
    "crop": 224,
    "channel_order": "RGB",
    "scale": 1,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def accuracy(correct, images, *, published=None, same=True):
    """What a document says of ``correct`` of ``images``."""
    z, p = 1.96, correct / images
    center = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    low, high = (round(100 * bound, 4) for bound in (max(0, center - half), min(1, center + half)))
    agrees = abs(100 * p - (published or 0)) <= 0.05 if same else low <= (published or 0) <= high
    return {
        "correct": correct,
        "percent": round(100 * p, 4),
        "interval95": [low, high],
        "published": published,
        "agrees": None if published is None else agrees,
    }


def make_model(name, *, classes, images=50, top1=76.0, published=None, same=True, seed=0):
    """A model that is right about ``images`` photos a class as often as chance has it.

    Its total is set to ``top1`` percent; each of its worst classes is taken for the next class.
    """
    chance = random.Random(seed)
    counts = []
    for index, of in enumerate(classes):
        skill = chance.betavariate(5, 1.5)
        first = sum(chance.random() < skill for _ in range(images))
        fifth = first + sum(chance.random() < 0.75 for _ in range(images - first))
        counts.append({"index": index, "name": of, "images": images, "top1": first, "top5": fifth})
    confused = [
        {
            "label": c["index"],
            "label_name": c["name"],
            "predicted": (c["index"] + 1) % len(classes),
            "predicted_name": classes[(c["index"] + 1) % len(classes)],
            "count": (images - c["top1"] + 1) // 2,
            "examples": [f"{c['name']}/{i}.png" for i in range(3)],
        }
        for c in sorted(counts, key=lambda c: c["top1"])[:20]
        if c["top1"] < images
    ]
    total = images * len(classes)
    top5 = None if published is None else 93.0
    return {
        "name": name,
        "architecture": "resnet50v1_sn",
        "weights": None,
        "preprocessing": dict(RECIPE),
        "images": total,
        "top1": accuracy(round(top1 * total / 100), total, published=published, same=same),
        "top5": accuracy(round(0.93 * total), total, published=top5, same=same),
        "published_on": published and "50,000 images of imagenet-1k-val",
        "same_images": published is not None and same,
        "calibration_error": 0.0312,
        "per_class": counts,
        "confused": confused,
    }


def make_document(models, *, path="/data/val", classes="imagenet-1k"):
    """What snzoo eval --json writes of these models."""
    images = models[0]["images"]
    return {
        "schema_version": 1,
        "data": {
            "path": path,
            "description": f"{images:,} images in {len(models[0]['per_class'])} class folders",
            "dataset": "imagenet-1k-val" if images == 50_000 else None,
            "images": images,
            "classes": classes,
        },
        "pixels": {"exact": True, "decoder": "simplejpeg 1.9.0", "resize": "pillow 13.0.0"},
        "run": {
            "device": "cpu",
            "precision": "fp32",
            "batch_size": 16,
            "compile": False,
            "channels_last": False,
            "threads": 2,
            "processes": 1,
            "workers": 2,
            "seconds": 13.7,
            "images_per_second": 18.2,
            "resumed": False,
        },
        "versions": {"snzoo": "0.1.0", "python": "3.11.7", "torch": "2.14.1", "pillow": "13.0.0"},
        "errors": [],
        "models": models,
    }


def step_line(step, loss, *, epoch=None, lr=0.01, speed=100.0):
    """A line of the log of a run whose epochs have 10 steps."""
    epoch = step / 10 if epoch is None else epoch
    line = {"event": "step", "step": step, "epoch": epoch, "loss": loss, "lr": lr}
    return line | {"images_per_second": speed}


def epoch_line(epoch, top1, *, of=200, loss=1.0, best=False, seconds=31.0):
    counts = {"images": of, "top1": top1, "top5": of, "loss": loss}
    line = {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "train_loss": 1.5}
    line |= {"train_top1": 43.1, "validation": counts, "best": best, "seconds": seconds}
    return line


def make_run(folder, lines, *, end="", model="resnet18v1_sn", **recipe):
    """Write what snzoo train writes of a run; ``end`` ends its log."""
    folder.mkdir(parents=True)
    settings = {
        "model": model,
        "recipe": {"lr": 0.01, "epochs": 3, "steps": [1, 2], "nesterov": True} | recipe,
        "seed": 7,
        "processes": 1,
        "train": {"description": "320 images in 2 class folders", "images": 320},
        "validation": {"description": "200 images in 2 class folders", "images": 200},
        "classes": ["cat", "dog"],
        "versions": {"snzoo": "0.1.0", "torch": "2.14.1"},
        "command": "snzoo train pets --model resnet18v1_sn",
    }
    (folder / "recipe.json").write_text(json.dumps(settings))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.ndjson").write_text(text + end)
    return folder


@pytest.fixture(scope="session")
def make():
    """The makers of this file, which tests can't import: ``make.model``, ``make.document``."""
    return Makers


class Makers:
    accuracy = staticmethod(accuracy)
    model = staticmethod(make_model)
    document = staticmethod(make_document)
    run = staticmethod(make_run)
    step = staticmethod(step_line)
    epoch = staticmethod(epoch_line)
    names = staticmethod(lambda n: [f"class {i}" for i in range(n)])

    @staticmethod
    def photos(root, classes, *, each=3):
        """Class folders of photos in one color each; returns name → color."""
        colors = {}
        for i, name in enumerate(classes):
            for j in range(each):
                color = (20 + 19 * i % 200, 200 - 60 * j, 40 + 50 * j)
                path = root / name / f"{j}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (300, 200), color).save(path)
                colors[f"{name}/{j}.png"] = color
        return colors


class Page(HTMLParser):
    """The elements (tag, attributes, text) of a page in order; tags must be nested properly."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text.append(data)
        for element in self.open:
            element[2] += data

    def all(self, *tags):
        return [element for element in self.elements if element[0] in tags]


@pytest.fixture
def parse():
    """Parses a page; returns a ``Page``."""
    return Page


@pytest.fixture
def report(tmp_path, capsys):
    """Runs ``snzoo report`` on a document; returns the page."""

    def run(document, *options):
        path = tmp_path / "results.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        status = main(["report", str(path), *map(str, options)])
        out, err = capsys.readouterr()
        assert (status, err) == (0, ""), err
        assert out == f"{tmp_path / 'results.html'}\n"
        return (tmp_path / "results.html").read_text(encoding="utf-8")

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """Run ``snzoo report`` on paths; it must fail in one line and write nothing."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        assert main(["report", *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("snzoo: ") and len(err.splitlines()) == 1, err
        assert "--debug" not in err and len(err) < 600
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.fixture
def report_runs(tmp_path, capsys):
    """Runs ``snzoo report`` on run folders; returns the page."""

    def run(*folders):
        output = tmp_path / "page.html"
        status = main(["report", *map(str, folders), "--output", str(output)])
        out, err = capsys.readouterr()
        assert (status, out, err) == (0, f"{output}\n", ""), err
        return output.read_text(encoding="utf-8")

    return run


class Browser:
    """A headless browser, started anew for every page."""

    def __init__(self, command, folder):
        self.command, self.folder = command, folder

    def open(self, page, *, options=()):
        """The DOM of a page once it is loaded, and the lines of its console."""
        path = self.folder / "opened.html"
        path.write_text(page, encoding="utf-8")
        profile = self.folder / "profile"
        done = subprocess.run(
            [
                self.command,
                *OPTIONS,
                f"--user-data-dir={profile}",
                *options,
                "--dump-dom",
                path.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        shutil.rmtree(profile, ignore_errors=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def measure(self, page, script, *, width=1200, dark=False):
        """What ``script``, given the page's ``document`` in a frame ``width`` wide, returns.

        Windows of headless browsers are at least 500 pixels wide, frames are not; and the page
        stays as it is, with its own policy, since the script is the surrounding page's.
        """
        frame = f"""<!DOCTYPE html><meta charset="utf-8">
            <meta name="color-scheme" content="light dark">
            <iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{html.escape(page)}">
            </iframe><script>onload = () => {{
              const window = frames[0], document = window.document;
              const answer = (() => {{ {script} }})();
              const out = self.document.createElement("output");
              out.textContent = JSON.stringify(answer);
              self.document.body.append(out);
            }};</script>"""
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        dom, console = self.open(
            frame, options=[scheme, "--window-size=1300,1000", "--hide-scrollbars"]
        )
        assert console == []
        return json.loads(html.unescape(re.search("<output>(.*)</output>", dom, re.DOTALL)[1]))


@pytest.fixture
def browser(tmp_path):
    command = find_browser()
    (tmp_path / "browser").mkdir()
    return Browser(command, tmp_path / "browser")
