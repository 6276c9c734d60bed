"""The command line: arguments in, messages out; nothing is decided here.

Modules of this package import torch and its kin inside their commands only, so that
``snzoo --help`` and ``snzoo list`` answer at once.
"""

from snzoo.cli.main import main

__all__ = ["main"]
