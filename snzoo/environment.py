"""Read environment variables and check for optional packages."""

import os
from importlib.util import find_spec

from snzoo.errors import ArgumentError, MissingPackageError

_VALUES = {"1": True, "true": True, "yes": True, "on": True}
_VALUES |= {"": False, "0": False, "false": False, "no": False, "off": False}


def is_set(name: str) -> bool:
    """Return whether an environment variable is set to 1 or a similar value (default: False).

    Raises:
        ArgumentError: the value is unknown.
    """
    value = os.environ.get(name, "")
    try:
        return _VALUES[value.lower()]
    except KeyError:
        raise ArgumentError(f"{name} must be 1 or 0, got {value!r}") from None


def require_packages(*names: str, extra: str, purpose: str) -> None:
    """Raise an error if optional packages are not installed.

    Args:
        names: the import names of the packages.
        extra: the extra of snzoo that installs the packages.
        purpose: what needs the packages; it is the subject of the error's sentence.

    Raises:
        MissingPackageError: a package is not installed.
    """
    missing = [name for name in names if not find_spec(name)]
    if missing:
        raise MissingPackageError(
            f"{purpose} needs {' and '.join(missing)}: python -m pip install 'snzoo[{extra}]' "
            f"(or {' '.join(name.replace('_', '-') for name in missing)})"
        )
