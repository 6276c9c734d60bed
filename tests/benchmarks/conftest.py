from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """The modules of the benchmarks can be imported as they import each other."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
