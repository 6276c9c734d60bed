"""torchvision's detectors and segmenters over the zoo's backbones.

    import snzoo, snzoo.tasks

    backbone = snzoo.create_model(NAME, pretrained=True, features_only=True)
    model = snzoo.tasks.faster_rcnn(backbone, num_classes=91)
    groups = snzoo.parameter_groups(model, lr=0.02, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)

These are the settings with which detectors were finetuned from the published SN networks.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from snzoo.errors import ArgumentError
from snzoo.models.features import FeatureExtractor
from snzoo.nn import SwitchNorm2d

FPN_CHANNELS = 256  # Lin et al. 2017


def faster_rcnn(
    backbone: FeatureExtractor, *, num_classes: int, frozen_stages: int | None = 1, **options: Any
) -> FasterRCNN:
    """Build Faster R-CNN with a feature pyramid network (Ren et al. 2015; Lin et al. 2017).

    Like torchvision's detectors, the model takes a list of RGB images (3, H, W) with values from 0
    to 1. It normalizes them for the backbone's weights.

    Args:
        backbone: A network of ``snzoo.create_model(..., features_only=True)`` with the four stages.
        num_classes: Number of classes, including the background, which is class 0.
        frozen_stages: Number of stages of the backbone to freeze, see
            :meth:`snzoo.models.backbone.Backbone.freeze`. Default: the stem and the first stage.
            Pass None for a backbone with random weights.
        options: Options of torchvision's class, e.g. ``min_size``.

    Raises:
        ArgumentError: the backbone is unsupported.
    """
    body = _Detection(backbone, frozen_stages)
    return FasterRCNN(body, num_classes, **body.normalization_options() | options)


def mask_rcnn(
    backbone: FeatureExtractor, *, num_classes: int, frozen_stages: int | None = 1, **options: Any
) -> MaskRCNN:
    """Build Mask R-CNN (He et al. 2017); see :func:`faster_rcnn` for arguments and errors."""
    body = _Detection(backbone, frozen_stages)
    return MaskRCNN(body, num_classes, **body.normalization_options() | options)


def deeplabv3(backbone: FeatureExtractor, *, num_classes: int) -> DeepLabV3:
    """Build DeepLab v3 (Chen et al. 2017) over a dilated backbone.

    The model takes images (N, 3, H, W) that are normalized for the backbone's weights. It returns
    ``{"out": (N, num_classes, H, W)}``, and ``"aux"`` of the same shape if the backbone has two
    maps (``out_indices=(3, 4)``). Over an SN backbone, the heads have SN too, so a single image
    per step is enough to train them. To synchronize batch statistics over processes, call
    ``convert_sync_switchnorm`` on the whole model.

    Args:
        backbone: ``snzoo.create_model(..., features_only=True, output_stride=8,
            out_indices=(4,))``; the stride may be 16 and the indices (3, 4).
        num_classes: Number of classes, including the background if it is a class.

    Raises:
        ArgumentError: the backbone is unsupported.
    """
    return _segmenter(DeepLabV3, DeepLabHead, backbone, num_classes)


def fcn(backbone: FeatureExtractor, *, num_classes: int) -> FCN:
    """Build FCN (Long et al. 2015) over a dilated backbone; see :func:`deeplabv3`."""
    return _segmenter(FCN, FCNHead, backbone, num_classes)


class _Detection(nn.Module):
    """A backbone with a feature pyramid network, in the form of torchvision's detectors."""

    def __init__(self, backbone: FeatureExtractor, frozen_stages: int | None) -> None:
        super().__init__()
        _check(backbone, [(1, 2, 3, 4)])
        if backbone.spec is None or backbone.conv1.in_channels != 3:
            raise ArgumentError("a detector needs a backbone of snzoo.create_model with in_chans=3")
        backbone.freeze(frozen_stages)
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(
            backbone.feature_info.channels(), FPN_CHANNELS, extra_blocks=LastLevelMaxPool()
        )
        self.out_channels = FPN_CHANNELS
        self.preprocessing = backbone.spec.preprocessing

    def normalization_options(self) -> dict[str, list[float]]:
        """Return torchvision's options for normalizing RGB values from 0 to 1."""
        rgb = self.preprocessing.in_rgb()
        return {"image_mean": list(rgb.mean), "image_std": list(rgb.std)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x if self.preprocessing.channel_order == "RGB" else x.flip(1))
        named: dict[str, Tensor] = self.fpn(OrderedDict(zip("0123", maps, strict=True)))
        return named


class _Maps(nn.Module):
    """A backbone's maps under the names of torchvision's segmenters."""

    def __init__(self, backbone: FeatureExtractor) -> None:
        super().__init__()
        self.body = backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(("out", "aux"), reversed(self.body(x)), strict=False))


def _segmenter(
    make: Callable[..., Any],
    make_head: Callable[[int, int], nn.Module],
    backbone: FeatureExtractor,
    num_classes: int,
) -> Any:
    _check(backbone, [(4,), (3, 4)])
    stride = backbone.feature_info.reduction()[-1]
    if stride > 16:
        raise ArgumentError(
            f"the backbone's last map has stride {stride}; create it with output_stride=8 or 16"
        )
    *others, channels = backbone.feature_info.channels()
    head = _match_norms(make_head(channels, num_classes), backbone)
    aux = _match_norms(FCNHead(others[-1], num_classes), backbone) if others else None
    return make(_Maps(backbone), head, aux)


def _match_norms(head: nn.Module, backbone: FeatureExtractor) -> nn.Module:
    """Return ``head``, with its batch norms replaced by SN if the backbone has SN."""
    like = backbone.norm(1)
    if not isinstance(like, SwitchNorm2d):
        return head
    switches = {key: getattr(like, key) for key in ("using_bn", "using_moving_average")}
    for parent in list(head.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, SwitchNorm2d(norm.num_features, **switches))
    return head


def _check(backbone: FeatureExtractor, accepted: Sequence[tuple[int, ...]]) -> None:
    if not isinstance(backbone, FeatureExtractor) or backbone.out_indices not in accepted:
        wanted = " or ".join(map(str, accepted))
        raise ArgumentError(
            f"the backbone must be of snzoo.create_model(..., features_only=True, "
            f"out_indices={wanted})"
        )
