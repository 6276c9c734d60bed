"""Train and finetune networks: recipes as data, restartable, on one device or many.

Importing this package does not import torch, so the command line shows its options quickly.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from snzoo.training.config import TrainingConfig as TrainingConfig
    from snzoo.training.run import TrainingResult as TrainingResult
    from snzoo.training.run import run_training as run_training
    from snzoo.training.run import train as train

_MODULES = {
    "TrainingConfig": "config",
    "TrainingResult": "run",
    "run_training": "run",
    "train": "run",
}
__all__ = list(_MODULES)


if not _TYPE_CHECKING:  # or no misspelled name would be an error for type checkers

    def __getattr__(name: str) -> _Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
