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
    assert len(rows) == 8
    for row in rows:
        name = f"{row['set']}: {row['norm']}{'' if row['trained'] else ', untrained'}"
        found = row["verification"]
        accuracy, tar = found["accuracy"], found["tar_at_far"][0]["tar"]["percent"]
        cells = [f"{accuracy['percent']:.2f} ± {accuracy['std']:.2f}"]
        cells += [f"{100 * found['equal_error_rate']:.2f}", f"{tar:.2f}"]
        assert f"| {name} | {' | '.join(cells)} |" in PAGE
    assert rows[0]["verification"]["accuracy"]["percent"] >= 95  # of people it has never seen


@pytest.mark.parametrize("code", RUNNABLE)
def test_the_code_runs(code):
    exec(code, {})


def test_the_page_shows_code():
    assert len(RUNNABLE) == 2
