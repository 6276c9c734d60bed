"""The Switchable Normalization operator (Luo et al., ICLR 2019, arXiv 1806.10779)."""

from snzoo.nn.convert import convert_to_batchnorm, convert_to_switchnorm
from snzoo.nn.fused import norm_relu
from snzoo.nn.hard import harden_gates
from snzoo.nn.locked import simplify
from snzoo.nn.sparse import SparseSwitchNorm2d, set_radius
from snzoo.nn.statistics import disable_running_stats_, update_bn_statistics
from snzoo.nn.switchnorm import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from snzoo.nn.sync import (
    SyncSwitchNorm1d,
    SyncSwitchNorm2d,
    SyncSwitchNorm3d,
    convert_sync_switchnorm,
    revert_sync_switchnorm,
)

__all__ = [
    "SparseSwitchNorm2d",
    "SwitchNorm1d",
    "SwitchNorm2d",
    "SwitchNorm3d",
    "SyncSwitchNorm1d",
    "SyncSwitchNorm2d",
    "SyncSwitchNorm3d",
    "convert_sync_switchnorm",
    "convert_to_batchnorm",
    "convert_to_switchnorm",
    "disable_running_stats_",
    "harden_gates",
    "norm_relu",
    "revert_sync_switchnorm",
    "set_radius",
    "simplify",
    "update_bn_statistics",
]
