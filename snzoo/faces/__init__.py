"""Face recognition: alignment and embeddings of photos, heads for training, and figures.

``import snzoo.faces`` is cheap: each name below is imported when it is first used.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
    from snzoo.faces.identification import Identification as Identification
    from snzoo.faces.identification import identify as identify
    from snzoo.faces.identification import identify_megaface as identify_megaface
    from snzoo.faces.verification import Verification as Verification
    from snzoo.faces.verification import verify as verify

_MODULES = {
    "Identification": "identification",
    "Verification": "verification",
    "identify": "identification",
    "identify_megaface": "identification",
    "verify": "verification",
}
__all__ = [*_MODULES]


if not _typing.TYPE_CHECKING:  # or no misspelled name would be an error for type checkers

    def __getattr__(name: str) -> _typing.Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'snzoo.faces' has no attribute {name!r}")
        value = getattr(_import_module(f"snzoo.faces.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
