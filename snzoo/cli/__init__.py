"""The command line, which parses arguments and prints results; the other packages do the work.

Modules of this package import torch only inside the functions that run commands, so that
``snzoo --help`` and ``snzoo list`` start quickly.
"""

from snzoo.cli.main import main

__all__ = ["main"]
