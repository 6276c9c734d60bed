"""Find the models that a wildcard stands for."""

from __future__ import annotations

import os
from typing import TypeGuard

from snzoo.errors import UnknownModelError
from snzoo.registry import list_models
from snzoo.spec import ModelSpec

WILDCARDS = set("*?[")


def is_wildcard(model: object) -> TypeGuard[str]:
    """Return whether a model is given by a wildcard. A path is none."""
    return isinstance(model, str) and bool(WILDCARDS & set(model)) and os.sep not in model


def match_models(pattern: str) -> list[ModelSpec]:
    """Return the models of the zoo that have weights and whose names match.

    Raises:
        UnknownModelError: no name matches.
    """
    specs = [ModelSpec.find(name) for name in list_models(pattern, pretrained=True)]
    if not specs:
        raise UnknownModelError(
            f"no model with weights matches {pattern!r}; see: snzoo list --pretrained"
        )
    return specs
