"""Evaluate networks on labeled images."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from snzoo.evaluation.network import Network as Network
    from snzoo.evaluation.network import choose_device as choose_device
    from snzoo.evaluation.run import Evaluation as Evaluation
    from snzoo.evaluation.run import evaluate as evaluate

_MODULES = {
    "Network": "network",
    "choose_device": "network",
    "Evaluation": "run",
    "evaluate": "run",
}


def __getattr__(name: str) -> _Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
