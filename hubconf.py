"""Entry points of torch.hub: one function for each model of the zoo and each architecture.

    torch.hub.load("PATH_OR_REPOSITORY", "resnet50v1_sn_8x32", pretrained=True, trust_repo=True)

The entry points are made from the manifest, so a new checkpoint needs no new code.
"""

from typing import Any as _Any

from snzoo.registry import create_model as _create_model
from snzoo.registry import get_info as _get_info
from snzoo.registry import list_models as _list_models

dependencies = ["torch", "numpy", "requests", "tqdm", "safetensors", "filelock"]


def _entry_point(name: str) -> _Any:
    def entry_point(pretrained: bool = False, **arguments: _Any) -> _Any:
        return _create_model(name, pretrained=pretrained, **arguments)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = _docstring(name)
    return entry_point


def _docstring(name: str) -> str:
    spec = _get_info(name)
    figures = "; ".join(
        [
            f"top-1 {result.top1:.2f}, top-5 {result.top5:.2f} on {result.images:,} images of "
            f"{result.dataset}"
            for result in spec.published
        ]
        + [found.describe() for found in spec.identification]
    )
    if spec.file is None:
        weights = "refused, because there are no published weights"
    else:
        weights = "load the zoo's weights, verified (default: False)"
    returns = "embeddings of faces" if spec.is_face else f"{spec.num_classes:,} classes"
    return f"""{spec.architecture}, {returns}.

    Published: {figures or ("no figures" if spec.file else "no weights")}.
    License of the weights: {(spec.license or "not stated") if spec.file else "no weights"}.
    {spec.provenance}
    {spec.preprocessing.describe()}

    Args:
        pretrained (bool): {weights}
        weights (str): load this file instead of the zoo's weights
        features_only (bool): return the maps of several stages (default: False)
        out_indices (tuple): indices of these maps; 0 is the stem (default: 1 to 4, the stages)
        in_chans (int): input channels (default: 3); weights are adapted to another number
        width (int): channels of the stem (default: {spec.arguments.get("width", 64)})
        using_bn (bool): for SN only, also mix batch statistics (default: {
        spec.arguments.get("using_bn", True)
    })
        {_options(spec)}
    """


def _options(spec: _Any) -> str:
    """Return the lines on the options that face networks and classifiers do not share."""
    if spec.is_face:
        return """drop_rate (float): dropout before the linear layer (default: 0.4)
        se (bool): add squeeze-and-excitation (default: False)"""
    rate = spec.arguments.get("drop_rate", 0.0)
    return f"""num_classes (int): number of logits (default: {
        spec.num_classes
    }); another number gives a new head
        output_stride (int): 8, 16 or 32 (default); below 32, the last stages are dilated
        drop_rate (float): dropout before fc (default: {rate})"""


for _name in _list_models():
    globals()[_name] = _entry_point(_name)
