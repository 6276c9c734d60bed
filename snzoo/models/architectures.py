"""The table of architectures, as data: importing it never imports torch."""

from dataclasses import dataclass
from typing import Literal

Norm = Literal["sn", "bn", "gn"]

# depth -> (bottleneck blocks, blocks in each of the four stages); He et al. 2016, table 1
DEPTHS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
NORMS: tuple[Norm, ...] = ("sn", "bn", "gn")


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
    for architecture in [Architecture(depth, version, norm)]
}
