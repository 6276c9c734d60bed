"""Environment variables and optional packages."""

import os
from importlib.util import find_spec

from snzoo.errors import ArgumentError, MissingPackageError

_VALUES = {"1": True, "true": True, "yes": True, "on": True}
_VALUES |= {"": False, "0": False, "false": False, "no": False, "off": False}


def is_set(name: str) -> bool:
    """Return whether an environment variable is switched on; an unset one is off.

    Raises:
        ArgumentError: the value means neither on nor off.
    """
    value = os.environ.get(name, "")
    try:
        return _VALUES[value.lower()]
    except KeyError:
        raise ArgumentError(f"{name} must be 1 or 0, got {value!r}") from None


def require_packages(*names: str, extra: str, purpose: str) -> None:
    """Check that optional packages are installed.

    Args:
        names: what they are imported by.
        extra: the extra of snzoo that installs them.
        purpose: what they are needed for, the subject of the error's sentence.

    Raises:
        MissingPackageError: one of them is missing.
    """
    missing = [name for name in names if not find_spec(name)]
    if missing:
        raise MissingPackageError(
            f"{purpose} needs {' and '.join(missing)}: python -m pip install 'snzoo[{extra}]' "
            f"(or {' '.join(name.replace('_', '-') for name in missing)})"
        )
