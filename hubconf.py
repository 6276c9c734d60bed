"""torch.hub entry points: one plain function for each name of the zoo and each architecture.

    torch.hub.load("PATH_OR_REPO", "resnet50v1_sn_8x32", pretrained=True, trust_repo=True)

Made from the manifest, so that a new checkpoint needs no new code.
"""

from typing import Any as _Any

from snzoo.registry import create_model as _create_model
from snzoo.registry import get_info as _get_info
from snzoo.registry import list_models as _list_models

dependencies = ["torch", "torchvision", "requests", "tqdm", "PIL", "safetensors", "filelock"]


def _entry_point(name: str) -> _Any:
    def entry_point(pretrained: bool = False, **arguments: _Any) -> _Any:
        return _create_model(name, pretrained=pretrained, **arguments)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = _docstring(name)
    return entry_point


def _docstring(name: str) -> str:
    entry = _get_info(name)
    figures = "; ".join(
        f"top-1 {result.top1:.2f}, top-5 {result.top5:.2f} on {result.images:,} images of "
        f"{result.dataset}"
        for result in entry.published
    )
    weights = "pretrained (bool): load the zoo's weights, verified (default: False)"
    if entry.file is None:
        weights = "pretrained (bool): refused, there are no published weights"
    elif not entry.file.is_readable:
        weights = f"pretrained (bool): refused, a {entry.file.format} file must be converted first"
    using_bn = entry.arguments.get("using_bn", True)
    return f"""{entry.architecture}, {entry.num_classes:,} classes.

    Published: {figures or "no weights"}.
    License of the weights: {(entry.license or "not stated") if entry.file else "no weights"}.
    {entry.provenance}

    Args:
        {weights}
        weights (str): load this file instead
        features_only (bool): a pyramid of maps instead of a classifier (default: False)
        out_indices (tuple): its maps (default: 1 to 4, the stages; 0 is the stem)
        num_classes (int): logits (default: {entry.num_classes}); another number gives a new head
        in_chans (int): input channels (default: 3); weights for another number are adapted
        width (int): channels of the stem (default: {entry.arguments.get("width", 64)})
        output_stride (int): 8, 16 or 32 (default): the last stages dilated instead of striding
        drop_rate (float): dropout before fc (default: {entry.arguments.get("drop_rate", 0.0)})
        using_bn (bool): SN only, mix in batch statistics (default: {using_bn})
    """


for _name in _list_models():
    globals()[_name] = _entry_point(_name)
