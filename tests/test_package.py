"""``import snzoo`` is cheap, and gives the whole public API."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import snzoo

CODE = """
import sys, snzoo
assert not {"torch", "numpy", "PIL", "requests"} & set(sys.modules), "import snzoo is not cheap"
assert set(snzoo.__all__) <= set(dir(snzoo)) and "__version__" in dir(snzoo)
assert "ArcFace" in dir(snzoo.faces) and not {"torch", "numpy"} & set(sys.modules)
snzoo.nn.SwitchNorm2d(8)
snzoo.faces.ArcFace(8, 2)
assert snzoo.faces.similarity([3, 4], [4, 3]) == 0.96
"""


def test_importing_is_cheap_and_submodules_are_there():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_has_a_docstring():
    assert snzoo.__version__ == version("snzoo")
    for name in snzoo.__all__:
        assert getattr(snzoo, name).__doc__
    with pytest.raises(AttributeError, match="module 'snzoo' has no attribute 'creat_model'"):
        _ = snzoo.creat_model
