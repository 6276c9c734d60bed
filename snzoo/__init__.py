"""snzoo: the model zoo and inference hub for Switchable Normalization.

Importing it is cheap: torch is imported by the first :func:`create_model`.
"""

from snzoo.finetune import parameter_groups
from snzoo.registry import create_model, get_info, list_models
from snzoo.share import push_to_hub, save_pretrained

__all__ = [
    "create_model",
    "get_info",
    "list_models",
    "parameter_groups",
    "push_to_hub",
    "save_pretrained",
]
