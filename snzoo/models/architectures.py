"""The table of architectures. Importing it does not import torch."""

from dataclasses import dataclass
from typing import Literal, TypedDict

Norm = Literal["sn", "ssn", "bn", "gn"]
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
NORMS: tuple[Norm, ...] = ("sn", "ssn", "bn", "gn")


class NetworkOptions(TypedDict, total=False):
    """Options of a network. None stands for the default; a zoo entry may set another one.

    Attributes:
        num_classes: Number of logits (1000). 0 means no classifier: the network returns the
            spatial mean of its last map.
        drop_rate: Probability of dropout before ``fc`` (0); the published SN networks: 0.5.
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


@dataclass(frozen=True)
class Architecture:
    """A ResNet of one depth, version (1: post-activation, 2: pre-activation) and norm."""

    depth: int
    version: Literal[1, 2]
    norm: Norm

    @property
    def name(self) -> str:
        return f"resnet{self.depth}v{self.version}_{self.norm}"


ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for depth in DEPTHS
    for version in (1, 2)
    for norm in NORMS
    if not (norm == "ssn" and version == 2)  # never published
    for architecture in [Architecture(depth, version, norm)]
}
