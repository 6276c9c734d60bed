"""``python -m snzoo``: the command line."""

import sys

from snzoo.cli import main

sys.exit(main())
