"""snzoo: the model zoo and inference hub for Switchable Normalization.

``import snzoo`` is cheap: each name below is imported when it is first used.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
    from snzoo import faces as faces
    from snzoo import nn as nn
    from snzoo.evaluation import evaluate as evaluate
    from snzoo.finetune import parameter_groups as parameter_groups
    from snzoo.inference import create_transform as create_transform
    from snzoo.inference import predict as predict
    from snzoo.registry import create_model as create_model
    from snzoo.registry import get_info as get_info
    from snzoo.registry import list_models as list_models
    from snzoo.share import push_to_hub as push_to_hub
    from snzoo.share import save_pretrained as save_pretrained
    from snzoo.training.run import train as train

    __version__: str

_MODULES = {
    "create_model": "registry",
    "create_transform": "inference",
    "evaluate": "evaluation",
    "get_info": "registry",
    "list_models": "registry",
    "parameter_groups": "finetune",
    "predict": "inference",
    "push_to_hub": "share",
    "save_pretrained": "share",
    "train": "training.run",
}
_SUBPACKAGES = ("faces", "nn")
__all__ = [*_MODULES, *_SUBPACKAGES]


if not _typing.TYPE_CHECKING:  # or no misspelled name would be an error for type checkers

    def __getattr__(name: str) -> _typing.Any:
        if name in _SUBPACKAGES:
            return _import_module(f"snzoo.{name}")
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("snzoo")
            except PackageNotFoundError:  # a checkout that is not installed
                return "0+unknown"
        if name not in _MODULES:
            raise AttributeError(f"module 'snzoo' has no attribute {name!r}")
        value = getattr(_import_module(f"snzoo.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
