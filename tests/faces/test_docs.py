"""The page on faces: its table is the manifest's, and its code runs."""

import json
import re
from pathlib import Path

import pytest

from snzoo.manifest import load_manifest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faces.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
# The others need photos, a detector and its model.
RUNNABLE = [code for code in BLOCKS if "align(" not in code and "import align" not in code]


def test_the_table_has_the_published_figures():
    rows = re.findall(r"^\| `(face_\w+)` \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    models = load_manifest().models
    published = [
        (name, f"{figure.rank1:.2f}")
        for name, entry in models.items()
        for figure in entry.identification
    ]
    assert rows == published


def test_the_figures_of_the_real_run_are_those_of_its_results():
    path = ROOT / "benchmarks" / "results" / "faces-2core-cpu.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    assert [(row["set"], row["norm"]) for row in rows] == [
        (name, norm) for name in ("generated", "real") for norm in ("SN", "BN")
    ]
    found = [row["verification"] for row in rows]
    accuracy = [f"{v['accuracy']['percent']:.2f} ± {v['accuracy']['std']:.2f}" for v in found]
    errors = [f"{100 * v['equal_error_rate']:.2f}" for v in found]
    tars = [f"{v['tar_at_far'][0]['tar']['percent']:.2f}" for v in found]
    for title, cells in {
        "accuracy over 10 folds": accuracy,
        "equal error rate": errors,
        "TAR at FAR 1e-3": tars,
    }.items():
        assert f"| {title} | {' | '.join(cells)} |" in PAGE
    assert float(accuracy[0].split()[0]) >= 95  # of people whom the network has never seen


@pytest.mark.parametrize("code", RUNNABLE)
def test_the_code_runs(code):
    exec(code, {})


def test_the_page_shows_code():
    assert len(RUNNABLE) == 2
