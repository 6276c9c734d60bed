"""snzoo: the model zoo and inference hub for Switchable Normalization.

Importing it is cheap: torch is imported by the first :func:`create_model`.
"""

from snzoo.registry import create_model, get_info, list_models

__all__ = ["create_model", "get_info", "list_models"]
