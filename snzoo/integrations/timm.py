"""Register the zoo's models with timm, under the names of ``snzoo.list_models()`` after ``snzoo_``.

    import timm, snzoo.integrations.timm

    model = timm.create_model("snzoo_resnet50v1_sn_8x32", pretrained=True, num_classes=10)
    maps = timm.create_model("snzoo_resnet50v1_sn", features_only=True, out_indices=(1, 2, 3, 4))

Importing this module registers the models. A name that timm has already is not replaced. timm lists
a model under the last part of the name of its module, here ``timm``.

A network is snzoo's own network with the attributes that timm expects. Its state dict has the same
keys. The zoo's weights come verified from snzoo's cache. Weights that a caller names
(``checkpoint_path``, ``hf-hub:``, ``local-dir:``, a source in ``pretrained_cfg_overlay``) are
loaded by timm. Such weights must be for RGB images.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

from snzoo.errors import ArgumentError, MissingPackageError, UnexpectedArgumentError

try:
    from timm.layers.config import is_scriptable
    from timm.models import (
        generate_default_cfgs,
        is_model,
        load_pretrained,
        register_model,
        resolve_pretrained_cfg,
    )
except ImportError as error:
    raise MissingPackageError(
        f"snzoo.integrations.timm needs timm: python -m pip install 'snzoo[timm]' ({error})"
    ) from None

import torch
from torch import Tensor

from snzoo.entry import Entry
from snzoo.models.architectures import ARCHITECTURES, Version
from snzoo.models.backbone import STAGES, Backbone
from snzoo.models.features import FeatureExtractor
from snzoo.models.resnet import ResNet
from snzoo.nn.switchnorm import SwitchNorm
from snzoo.preprocessing import Preprocessing
from snzoo.registry import get_info, list_models

PREFIX = "snzoo_"
ZOO = "snzoo:"  # with a name, the source of the zoo's weights in timm's configurations
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "source")  # all fields that may name a source
RESNETS: dict[Version, str] = {1: "arXiv:1512.03385", 2: "arXiv:1603.05027"}
NORMS = {
    "sn": ["arXiv:1806.10779"],
    "ssn": ["arXiv:1903.03793"],
    "gn": ["arXiv:1803.08494"],
    "bn": ["arXiv:1502.03167"],
}


class TimmBackbone(Backbone):
    """A backbone with the attributes and methods that timm expects of every network.

    Attributes:
        pretrained_cfg: timm's configuration of the model, a dict; ``default_cfg`` is the same.
        pretrained_model_args: the arguments that timm read with the checkpoint, if any.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    pretrained_model_args: dict[str, Any]

    @property
    def in_chans(self) -> int:
        return self.conv1.in_channels

    def no_weight_decay(self) -> set[str]:
        """Return the names of SN's parameters; timm finds other norms and biases by their shape."""
        return {
            f"{layer}.{parameter}"
            for layer, module in self.named_modules()
            if isinstance(module, SwitchNorm)
            for parameter, _ in module.named_parameters()
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns of timm's layers: stem, blocks (or stages), v2's last norm."""
        return {
            "stem": rf"^(?:conv1|{self.prefix}1)\.",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
            "last_norm": rf"^{self.prefix}_out\.",
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise an error if ``enable``: recomputed blocks update running statistics twice."""
        if enable:
            raise UnexpectedArgumentError(
                "gradient checkpointing would update running statistics twice a step"
            )


class TimmResNet(TimmBackbone, ResNet):
    """A classifier for timm; ``global_pool`` is ``avg``, or empty to return the last map itself."""

    global_pool: str

    @property
    def head_hidden_size(self) -> int:
        return self.num_features

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace ``fc``, or remove it if ``num_classes`` is 0.

        Args:
            num_classes: the number of classes.
            global_pool: timm's name of a pool; None keeps the present one.

        Raises:
            ArgumentError: the pool is unknown, or there are classes without a pool.
        """
        pool = self.global_pool if global_pool is None else global_pool
        _check_head(pool, num_classes)
        self.global_pool = pool
        super().reset_classifier(num_classes)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits, or the input of ``fc``; without a pool, the last map itself."""
        if self.global_pool:
            return super().forward_head(x, pre_logits=pre_logits)
        unpooled: Tensor = self.drop(x)
        return unpooled


class TimmFeatureExtractor(TimmBackbone, FeatureExtractor):
    """A feature extractor for timm."""


def take_rgb(model: ResNet, in_chans: int) -> None:
    """Convert a stem for BGR images to RGB, and then to ``in_chans`` channels.

    Afterwards an RGB image gives the logits that its BGR copy gave before. The order is reversed
    first, because the adaptation to other channels begins with the first channel.
    """
    with torch.no_grad():
        model.conv1.weight.copy_(model.conv1.weight.flip(1))
    model.reset_input(in_chans)


def crop_fraction(recipe: Preprocessing) -> float:
    """Return timm's ``crop_pct``: timm resizes the shorter side to ``floor(crop / crop_pct)``.

    If ``crop / resize`` was rounded up, dividing ``crop`` by it may give slightly less than
    ``resize``. In that case, the next smaller number is returned.
    """
    fraction = recipe.crop / recipe.resize
    exact = math.floor(recipe.crop / fraction) == recipe.resize
    return fraction if exact else math.nextafter(fraction, 0)


def _config(entry: Entry) -> dict[str, Any]:
    """Return the fields of timm's ``PretrainedCfg``."""
    recipe = entry.preprocessing.in_rgb()
    architecture, file = ARCHITECTURES[entry.architecture], entry.file
    return {
        # timm counts a model as pretrained if it has a source. This source is not a path, so
        # timm's own loader, which would not verify the published file, finds no file.
        "file": ZOO + entry.name if file else None,
        "num_classes": entry.num_classes,
        "label_names": None if isinstance(entry.classes, str) else entry.classes,
        "input_size": (3, recipe.crop, recipe.crop),
        "pool_size": (math.ceil(recipe.crop / 32),) * 2,
        "crop_pct": crop_fraction(recipe),
        "crop_mode": "center",
        "interpolation": recipe.resampling.partition("-")[2],  # timm resizes with Pillow's filter
        "mean": recipe.mean,
        "std": recipe.std,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": entry.license and entry.license.lower(),
        "description": entry.provenance,
        "origin_url": next(iter((*file.pages, *file.urls)), None) if file else None,
        "paper_ids": (RESNETS[architecture.version], *NORMS[architecture.norm]),
    }


def _create(
    name: str,
    *,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    pretrained_model_args: dict[str, Any] | None = None,
    cache_dir: Any = None,
    global_pool: str = "avg",
    **arguments: Any,
) -> TimmResNet | TimmFeatureExtractor:
    """Create a network for ``timm.create_model``; other arguments are passed to snzoo."""
    resolved: Any = resolve_pretrained_cfg(PREFIX + name, pretrained_cfg, pretrained_cfg_overlay)
    config: dict[str, Any] = resolved.to_dict()
    if config.get("file") == ZOO + name:
        del config["file"]  # any other source was named by the caller
    of_caller = any(config.get(key) for key in SOURCES)
    if pretrained and not of_caller and cache_dir is not None:
        raise UnexpectedArgumentError(
            "cache_dir: the zoo's weights are where SNZOO_HOME says; set that instead"
        )
    if "weights" in arguments:
        raise UnexpectedArgumentError("weights: timm loads a file by checkpoint_path=")
    if is_scriptable():  # type: ignore[no-untyped-call]
        raise UnexpectedArgumentError(
            "scriptable: TorchScript can't hold these networks; see snzoo export"
        )
    arguments = {"in_chans": config["input_size"][0], **arguments}
    if arguments.get("features_only"):
        arguments = {"out_indices": range(1 + STAGES), **arguments}
    else:
        arguments = {"num_classes": config["num_classes"], **arguments}
        _check_head(global_pool, arguments["num_classes"])
    model = _create_rgb(name, pretrained=pretrained and not of_caller, **arguments)
    adapted = _adapt(model, config, global_pool)
    adapted.pretrained_model_args = pretrained_model_args or {}
    if pretrained and of_caller:
        _load(adapted, config, cache_dir)
    elif pretrained:
        _warn_of_resampling(adapted.spec)
    return adapted


def _warn_of_resampling(spec: Entry | None) -> None:
    """Warn if timm's transforms do not resize photos by the rule of the published accuracy."""
    if spec and (rule := spec.preprocessing.resampling) != "pillow-bilinear":
        warnings.warn(
            f"{spec.name} was published for photos resized by the rule {rule}, which timm does not "
            "have; use snzoo.create_transform(model)",
            stacklevel=5,
        )


def _check_head(global_pool: str, num_classes: int) -> None:
    if global_pool not in ("avg", ""):
        raise ArgumentError(f"global_pool must be 'avg', or '' for none, got {global_pool!r}")
    if not global_pool and num_classes:
        raise ArgumentError(
            f"global_pool='' takes num_classes=0, not {num_classes}: fc needs a pool"
        )


def _create_rgb(
    name: str,
    *,
    pretrained: bool,
    in_chans: int,
    features_only: bool = False,
    out_indices: Any = None,
    **arguments: Any,
) -> ResNet | FeatureExtractor:
    """Create snzoo's network for RGB values from 0 to 1, whatever input it was trained on."""
    spec = get_info(name)
    reverse = pretrained and spec.preprocessing.channel_order == "BGR"
    if features_only:
        arguments = {k: v for k, v in arguments.items() if k not in ("num_classes", "drop_rate")}
    arguments["in_chans"] = 3 if reverse else in_chans
    model = (
        spec.load(out_indices=out_indices, **arguments) if pretrained else spec.build(**arguments)
    )
    assert isinstance(model, ResNet)  # face networks are not registered
    if reverse:
        take_rgb(model, in_chans)
    assert model.spec is not None
    model.spec = dataclasses.replace(
        model.spec,
        arguments=model.spec.arguments | {"in_chans": in_chans},
        preprocessing=spec.preprocessing.in_rgb(),
    )
    return FeatureExtractor(model, out_indices) if features_only else model


def _adapt(
    model: ResNet | FeatureExtractor, config: dict[str, Any], global_pool: str
) -> TimmResNet | TimmFeatureExtractor:
    """Change the class of a network to one with timm's methods; return the same network."""
    adapted: Any = model
    if isinstance(model, FeatureExtractor):
        adapted.__class__ = TimmFeatureExtractor
        config = {k: v for k, v in config.items() if k not in ("num_classes", "classifier")}
    else:
        adapted.__class__ = TimmResNet
        adapted.global_pool = global_pool
    adapted.pretrained_cfg = adapted.default_cfg = config
    result: TimmResNet | TimmFeatureExtractor = adapted
    return result


def _load(model: TimmResNet | TimmFeatureExtractor, config: dict[str, Any], cache_dir: Any) -> None:
    """Load weights from the caller's source with timm; all keys must match, except for a new fc."""
    extractor, own = isinstance(model, TimmFeatureExtractor), model.state_dict().keys()
    load_pretrained(
        model,
        pretrained_cfg=config,
        # A feature extractor has no fc, so timm must not treat it as new.
        num_classes=model.num_classes if isinstance(model, TimmResNet) else config["num_classes"],
        in_chans=model.in_chans,
        filter_fn=lambda state, _: {
            key: state[key] for key in state if not extractor or key in own
        },
        cache_dir=cache_dir,
    )


def _entrypoint(name: str) -> Callable[..., TimmResNet | TimmFeatureExtractor]:
    def entrypoint(pretrained: bool = False, **arguments: Any) -> TimmResNet | TimmFeatureExtractor:
        return _create(name, pretrained=pretrained, **arguments)

    entrypoint.__name__ = entrypoint.__qualname__ = PREFIX + name
    entrypoint.__doc__ = f"snzoo's {name} for timm; arguments: those of snzoo.create_model."
    return entrypoint


# timm reads default_cfgs from the module of a registered function.
# Face networks are left out, because timm's models return logits.
_RESNETS = {name for name, architecture in ARCHITECTURES.items() if not architecture.is_face}
_NAMES = [name for name in list_models() if get_info(name).architecture in _RESNETS]
default_cfgs = generate_default_cfgs({PREFIX + name: _config(get_info(name)) for name in _NAMES})
for _name in _NAMES:
    globals()[PREFIX + _name] = _entrypoint(_name)
    if not is_model(PREFIX + _name):
        register_model(globals()[PREFIX + _name])

__all__ = list(default_cfgs)
