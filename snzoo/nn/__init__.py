"""The Switchable Normalization operator (Luo et al., ICLR 2019, arXiv 1806.10779)."""

from snzoo.nn.fused import norm_relu
from snzoo.nn.switchnorm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

__all__ = ["SwitchNorm1d", "SwitchNorm2d", "SwitchNorm3d", "norm_relu"]
