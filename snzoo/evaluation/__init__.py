"""Evaluate networks on labeled images, and face networks on pairs of photos.

Importing this package does not import torch, so the command line shows its options quickly.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from snzoo.evaluation.config import EvaluationConfig as EvaluationConfig
    from snzoo.evaluation.faces import evaluate_faces as evaluate_faces
    from snzoo.evaluation.results import Results as Results
    from snzoo.evaluation.results import read_results as read_results
    from snzoo.evaluation.run import evaluate as evaluate
    from snzoo.evaluation.run import run_evaluation as run_evaluation

_MODULES = {
    "EvaluationConfig": "config",
    "Results": "results",
    "evaluate": "run",
    "evaluate_faces": "faces",
    "read_results": "results",
    "run_evaluation": "run",
}
__all__ = list(_MODULES)


if not _TYPE_CHECKING:  # or no misspelled name would be an error for type checkers

    def __getattr__(name: str) -> _Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
