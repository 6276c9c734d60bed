"""The zoo as models of timm: ``snzoo_`` and any name of ``snzoo.list_models()``.

    import timm, snzoo.integrations.timm

    model = timm.create_model("snzoo_resnet50v1_sn_8x32", pretrained=True, num_classes=10)
    maps = timm.create_model("snzoo_resnet50v1_sn", features_only=True, out_indices=(1, 2, 3, 4))

Importing this registers them, which is all that it is for; a name that timm has already is left
alone. timm lists a model under the last part of the name of its module, here ``timm``.

A network is snzoo's own, with its state-dict keys, and what timm asks of a network beside.
The zoo's weights are snzoo's too, verified and from its cache. Weights that a caller names to timm
(``checkpoint_path``, ``hf-hub:``, ``local-dir:``, a source in ``pretrained_cfg_overlay``) are
loaded by timm, and taken for RGB.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from snzoo.errors import SnzooError

try:
    from timm.layers.config import is_scriptable
    from timm.models import (
        FeatureInfo,
        generate_default_cfgs,
        is_model,
        load_pretrained,
        register_model,
        resolve_pretrained_cfg,
    )
except ImportError as error:
    raise SnzooError(
        f"snzoo.integrations.timm needs timm: pip install 'timm>=1.0.31' ({error})"
    ) from None

from torch import Tensor, nn

from snzoo.manifest import Entry, Preprocessing
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.resnet import STAGES, Backbone, FeaturePyramid, ResNet
from snzoo.nn.switchnorm import SwitchNorm
from snzoo.registry import create_model, get_info, list_models
from snzoo.weights import adapt_input

PREFIX = "snzoo_"
ZOO = "snzoo:"  # and a name: the source of the zoo's weights, in timm's configs
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "source")  # all that those may name
RESNETS = {1: "arXiv:1512.03385", 2: "arXiv:1603.05027"}
NORMS = {"sn": ["arXiv:1806.10779"], "gn": ["arXiv:1803.08494"], "bn": ["arXiv:1502.03167"]}


class Level(dict[str, Any]):
    """One map that a network can give, as timm reads it (a dict) and as snzoo does."""

    module = property(itemgetter("module"))
    channels = property(itemgetter("num_chs"))
    stride = property(itemgetter("reduction"))


class TimmBackbone(Backbone):
    """What timm asks of classifiers and of pyramids.

    Attributes:
        pretrained_cfg: timm's configuration of the model as a dict; also as ``default_cfg``.
        pretrained_model_args: of the checkpoint, where timm read them with it.
    """

    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    pretrained_model_args: dict[str, Any]

    @property
    def in_chans(self) -> int:
        return self.conv1.in_channels

    def no_weight_decay(self) -> set[str]:
        """The parameters of SN; timm finds those of other norms, and biases, by their shape."""
        return {
            f"{layer}.{parameter}"
            for layer, module in self.named_modules()
            if isinstance(module, SwitchNorm)
            for parameter, _ in module.named_parameters()
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of timm's layers: the stem, each block (or stage), v2's last norm, the rest."""
        return {
            "stem": rf"^(?:conv1|{self.prefix}1)\.",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
            "last_norm": rf"^{self.prefix}_out\.",
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refused: a block that is computed twice moves its running statistics twice."""
        if enable:
            raise SnzooError("gradient checkpointing would move running statistics twice a step")


class TimmResNet(TimmBackbone, ResNet):
    """A classifier for timm; ``global_pool`` is ``avg``, or empty for the last map itself."""

    global_pool: str

    @property
    def head_hidden_size(self) -> int:
        return self.num_features

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new ``fc``, none for 0 classes; ``global_pool`` as in timm, None: as it is.

        Raises:
            SnzooError: there is no such pool, or classes without one.
        """
        pool = self.global_pool if global_pool is None else global_pool
        _check_head(pool, num_classes)
        self.global_pool = pool
        super().reset_classifier(num_classes)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map → logits, or what ``fc`` is given; the map where nothing pools it."""
        if self.global_pool:
            return super().forward_head(x, pre_logits=pre_logits)
        unpooled: Tensor = self.drop(x)
        return unpooled


class TimmPyramid(TimmBackbone, FeaturePyramid):
    """A pyramid for timm: ``feature_info`` is timm's, with ``channels()`` and ``reduction()``."""


def take_rgb(model: Backbone, in_chans: int) -> None:
    """Turn a stem whose weights are for BGR into one for RGB, then for ``in_chans`` channels.

    The logits of an RGB image are then those that its BGR copy had. The order is reversed
    before other channels are made of the three, because adaptation begins with the first.
    """
    weight = adapt_input(model.conv1.weight.detach().flip(1), in_chans)
    model.conv1.weight = nn.Parameter(weight)
    model.conv1.in_channels = in_chans


def crop_fraction(recipe: Preprocessing) -> float:
    """timm's ``crop_pct``: timm resizes the shorter side to ``floor(crop / crop_pct)``.

    Dividing by crop / resize may fall just short of ``resize`` where that quotient was rounded
    up; by the next number below it, it never does.
    """
    fraction = recipe.crop / recipe.resize
    exact = math.floor(recipe.crop / fraction) == recipe.resize
    return fraction if exact else math.nextafter(fraction, 0)


def _config(entry: Entry) -> dict[str, Any]:
    """The fields of timm's ``PretrainedCfg``."""
    recipe = entry.preprocessing.in_rgb()
    architecture, file = ARCHITECTURES[entry.architecture], entry.file
    return {
        # timm counts a model as pretrained where it has a source. This one is no path: timm's
        # own loader, which would not verify the published file, finds nothing there.
        "file": ZOO + entry.name if file and file.is_readable else None,
        "num_classes": entry.num_classes,
        "label_names": None if isinstance(entry.classes, str) else entry.classes,
        "input_size": (3, recipe.crop, recipe.crop),
        "pool_size": (math.ceil(recipe.crop / 32),) * 2,
        "crop_pct": crop_fraction(recipe),
        "crop_mode": "center",
        "interpolation": "bilinear",
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
) -> TimmResNet | TimmPyramid:
    """What ``timm.create_model`` calls, with all that it passes; other arguments go to snzoo."""
    resolved: Any = resolve_pretrained_cfg(PREFIX + name, pretrained_cfg, pretrained_cfg_overlay)
    config: dict[str, Any] = resolved.to_dict()
    if config.get("file") == ZOO + name:
        del config["file"]  # what else it names is the caller's
    of_caller = any(config.get(key) for key in SOURCES)
    if pretrained and not of_caller and cache_dir is not None:
        raise SnzooError("cache_dir: the zoo's weights are where SNZOO_HOME says; set that instead")
    if "weights" in arguments:
        raise SnzooError("weights: timm loads a file by checkpoint_path=")
    if is_scriptable():  # type: ignore[no-untyped-call]
        raise SnzooError("scriptable: TorchScript can't hold these networks; see snzoo export")
    arguments = {"in_chans": config["input_size"][0], **arguments}
    if arguments.get("features_only"):  # as in timm, what is of the head changes nothing
        arguments = {k: v for k, v in arguments.items() if k not in ("num_classes", "drop_rate")}
        arguments["out_indices"] = _indices(arguments.get("out_indices", range(1 + STAGES)))
    else:
        arguments = {"num_classes": config["num_classes"], **arguments}
        _check_head(global_pool, arguments["num_classes"])
    model = _of_the_zoo(name, pretrained=pretrained and not of_caller, **arguments)
    adapted = _adapt(model, config, global_pool)
    adapted.pretrained_model_args = pretrained_model_args or {}
    if pretrained and of_caller:
        _load(adapted, config, cache_dir)
    return adapted


def _check_head(global_pool: str, num_classes: int) -> None:
    if global_pool not in ("avg", ""):
        raise SnzooError(f"global_pool must be 'avg', or '' for none, got {global_pool!r}")
    if not global_pool and num_classes:
        raise SnzooError(f"global_pool='' takes num_classes=0, not {num_classes}: fc needs a pool")


def _indices(given: int | Sequence[int]) -> list[int]:
    """timm's ways to name maps: the last n of them, or indices that may count from the end."""
    indices = range(-given, 0) if isinstance(given, int) else given
    return [i + 1 + STAGES if i < 0 else i for i in indices]


def _of_the_zoo(
    name: str, *, pretrained: bool, in_chans: int, **arguments: Any
) -> ResNet | FeaturePyramid:
    """snzoo's network, for RGB values from 0 to 1 whatever it was trained on."""
    recipe = get_info(name).preprocessing
    reverse = pretrained and recipe.channel_order == "BGR"
    model: ResNet | FeaturePyramid = create_model(
        name, pretrained=pretrained, in_chans=3 if reverse else in_chans, **arguments
    )
    if reverse:
        take_rgb(model, in_chans)
    described = model.entry.arguments | {"in_chans": in_chans}
    model.entry = dataclasses.replace(
        model.entry, arguments=described, preprocessing=recipe.in_rgb()
    )
    return model


def _adapt(
    model: ResNet | FeaturePyramid, config: dict[str, Any], global_pool: str
) -> TimmResNet | TimmPyramid:
    """The same network, of the class that answers timm."""
    adapted: Any = model
    levels: list[dict[str, Any]] = [
        Level(num_chs=info.channels, reduction=info.stride, module=info.module)
        for info in model.feature_info
    ]
    if isinstance(model, FeaturePyramid):
        adapted.__class__ = TimmPyramid
        adapted.feature_info = FeatureInfo(levels, model.out_indices)
        config = {k: v for k, v in config.items() if k not in ("num_classes", "classifier")}
    else:
        adapted.__class__ = TimmResNet
        adapted.feature_info = levels
        adapted.global_pool = global_pool
    adapted.pretrained_cfg = adapted.default_cfg = config
    result: TimmResNet | TimmPyramid = adapted
    return result


def _load(model: TimmResNet | TimmPyramid, config: dict[str, Any], cache_dir: Any) -> None:
    """Weights from a source that the caller named to timm, by timm, strictly but for a new fc."""
    pyramid, own = isinstance(model, TimmPyramid), model.state_dict().keys()
    load_pretrained(
        model,
        pretrained_cfg=config,
        # A pyramid, which has no fc, has no new one either.
        num_classes=model.num_classes if isinstance(model, TimmResNet) else config["num_classes"],
        in_chans=model.in_chans,
        filter_fn=lambda state, _: {key: state[key] for key in state if not pyramid or key in own},
        cache_dir=cache_dir,
    )


def _entrypoint(name: str) -> Callable[..., TimmResNet | TimmPyramid]:
    def entrypoint(pretrained: bool = False, **arguments: Any) -> TimmResNet | TimmPyramid:
        return _create(name, pretrained=pretrained, **arguments)

    entrypoint.__name__ = entrypoint.__qualname__ = PREFIX + name
    entrypoint.__doc__ = f"snzoo's {name} for timm; arguments: those of snzoo.create_model."
    return entrypoint


# timm reads them from the module of a function that it registers.
default_cfgs = generate_default_cfgs(
    {PREFIX + name: _config(get_info(name)) for name in list_models()}
)
for _name in list_models():
    globals()[PREFIX + _name] = _entrypoint(_name)
    if not is_model(PREFIX + _name):
        register_model(globals()[PREFIX + _name])

__all__ = list(default_cfgs)
