"""The table of architectures. Importing it does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypedDict

Norm = Literal["sn", "ssn", "syncsn", "bn", "gn"]
Version = Literal[1, 2, "face"]
StemPool = Literal["padded", "ceil"]
StrideOn = Literal["3x3", "1x1", "last_unit"]

# depth -> (bottleneck blocks, blocks in each of the four stages); He et al. 2016, table 1
DEPTHS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
# The same for face networks, whose blocks have no bottleneck
FACE_DEPTHS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (False, (3, 4, 14, 3)),
    100: (False, (3, 13, 30, 3)),
}
EMBEDDING_SIZE = 512  # values that a face network returns
NORMS: tuple[Norm, ...] = ("sn", "ssn", "syncsn", "bn", "gn")
RESNET_VERSIONS: tuple[Version, ...] = (1, 2)
RESNET_NORMS: tuple[Norm, ...] = ("sn", "ssn", "bn", "gn")
FACE_NORMS: tuple[Norm, ...] = ("sn", "syncsn", "bn")
SWITCH_NORMS: tuple[Norm, ...] = ("sn", "ssn", "syncsn")  # those with gates


class NetworkOptions(TypedDict, total=False):
    """Options of a network. None stands for the default; a zoo entry may set another one.

    Face networks take ``drop_rate``, ``in_chans``, ``width``, ``using_bn``,
    ``using_moving_average``, ``hard_gates`` and ``se``.

    Attributes:
        num_classes: Number of logits (1000). 0 means no classifier: the network returns the
            spatial mean of its last map.
        drop_rate: Probability of dropout before ``fc`` (0); the published SN networks: 0.5. Face
            networks: before their linear layer (0.4).
        in_chans: Number of input channels (3).
        width: Number of channels of the stem and of the first stage's blocks (64).
        output_stride: Input pixels per position of the last map: 8, 16 or 32 (default). Below
            32, the last stages are dilated instead of strided (arXiv 1705.09914).
        stem_pool: Padding of the 3×3 max pool with stride 2: ``padded`` by one pixel on all sides
            (torchvision, SN), or ``ceil`` (Caffe, TF-Slim, sparse SN): where its last window
            needs it. The default is that of the published networks with this norm.
        using_bn: SN only: mix in batch statistics (True).
        using_moving_average: SN and sparse SN only, see :class:`snzoo.nn.SwitchNorm2d` (True).
        last_gamma: v1 only: initialize the last norm scale of each block to 0 (False).
        stride_on: v1 bottlenecks only: where a stage strides. ``3x3`` (torchvision, SN; the
            default), ``1x1`` (MSRA), or ``last_unit`` of the stage before (TF-Slim).
        norm_after_add: v1 only: the last norm of a block follows the addition, and projections
            have no norm, as in the ResNet-50 of fb.resnet.torch (False).
        hard_gates: SN and sparse SN only: replace the gates by their argmax, after weights are
            loaded, see :func:`snzoo.nn.harden_gates` (False).
        se: Face networks only: add squeeze-and-excitation to the blocks (False).
    """

    num_classes: int | None
    drop_rate: float | None
    in_chans: int | None
    width: int | None
    output_stride: int | None
    stem_pool: StemPool | None
    using_bn: bool | None
    using_moving_average: bool | None
    last_gamma: bool | None
    stride_on: StrideOn | None
    norm_after_add: bool | None
    hard_gates: bool | None
    se: bool | None


@dataclass(frozen=True)
class Architecture:
    """A ResNet of one depth, version and norm.

    Version 1 is post-activation, 2 is pre-activation, and "face" is that of
    :class:`snzoo.models.face_resnet.FaceResNet`.
    """

    depth: int
    version: Version
    norm: Norm

    @property
    def name(self) -> str:
        if self.is_face:
            return f"face_resnet{self.depth}_{self.norm}"
        return f"resnet{self.depth}v{self.version}_{self.norm}"

    @property
    def is_face(self) -> bool:
        """Whether the network returns embeddings of faces instead of logits."""
        return self.version == "face"

    @property
    def stages(self) -> tuple[bool, tuple[int, int, int, int]]:
        """Whether blocks are bottlenecks, and the number of blocks in each stage."""
        return (FACE_DEPTHS if self.is_face else DEPTHS)[self.depth]


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in [
        *(
            Architecture(depth, version, norm)
            for depth in DEPTHS
            for version in RESNET_VERSIONS
            for norm in RESNET_NORMS
            if not (norm == "ssn" and version == 2)  # never published
        ),
        *(Architecture(depth, "face", norm) for depth in FACE_DEPTHS for norm in FACE_NORMS),
    ]
}


def clean_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options without the values None, and with integers of NumPy as Python integers."""
    return {
        name: int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
        for name, value in options.items()
        if value is not None
    }
