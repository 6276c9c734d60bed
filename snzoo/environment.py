"""Environment variables that switch something on."""

import os

from snzoo.errors import SnzooError

_MEANINGS = {"1": True, "true": True, "yes": True, "on": True}
_MEANINGS |= {"": False, "0": False, "false": False, "no": False, "off": False}


def is_set(name: str) -> bool:
    """Whether the variable is on; unset is off.

    Raises:
        SnzooError: its value means neither, and is not guessed at.
    """
    value = os.environ.get(name, "")
    try:
        return _MEANINGS[value.lower()]
    except KeyError:
        raise SnzooError(f"{name} must be 1 or 0, got {value!r}") from None
