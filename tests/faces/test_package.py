"""``import snzoo.faces`` is cheap, and gives the whole public API of faces."""

import subprocess
import sys

import pytest

import snzoo.faces

CODE = """
import sys, snzoo.faces
assert set(snzoo.faces.__all__) <= set(dir(snzoo.faces))
assert not {"torch", "numpy"} & set(sys.modules), "import snzoo.faces is not cheap"
"""


def test_importing_is_cheap():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_has_a_docstring():
    for name in snzoo.faces.__all__:
        assert getattr(snzoo.faces, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'Arcface'"):
        _ = snzoo.faces.Arcface
