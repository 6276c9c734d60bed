"""SwitchNorm with the batch statistics of all processes, for few samples per device."""

import copy
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from snzoo.nn.functional import Config, LayerTensors
from snzoo.nn.switchnorm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _SyncSwitchNorm(SwitchNorm):
    process_group: "ProcessGroup | None"

    def __init__(
        self, *args: Any, process_group: "ProcessGroup | None" = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.process_group = process_group

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SyncSwitchNorm":
        """Return a copy with the same process group, which can't be copied."""
        memo[id(self)] = layer = type(self).__new__(type(self))
        memo[id(self.process_group)] = self.process_group
        layer.__dict__ = copy.deepcopy(vars(self), memo)
        return layer

    def tensors_and_config(self) -> tuple[LayerTensors, Config]:
        tensors, config = super().tensors_and_config()
        batch = config.batch and self.training
        if batch and dist.is_available() and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
            if dist.get_world_size(group) > 1:
                config = config._replace(group=group)
        return tensors, config


class SyncSwitchNorm1d(_SyncSwitchNorm, SwitchNorm1d):
    """:class:`SwitchNorm1d`, synchronized like :class:`SyncSwitchNorm2d`.

    The unbiased BN variance counts the values of all processes.
    """


class SyncSwitchNorm2d(_SyncSwitchNorm, SwitchNorm2d):
    """:class:`SwitchNorm2d` with the batch statistics of all processes of a group in training.

    The batch statistics, their gradient and the running statistics are as if one process had
    all samples, however they are spread; IN and LN statistics are each sample's own.
    Parameters get the gradients of this process's samples, as in one process.

    Each layer runs one collective operation forward and one backward, of some values per
    channel. All processes must run the layer, also those with an empty batch, whose parameters
    get gradients of 0.

    In evaluation mode, with ``using_bn=False``, without ``torch.distributed`` and in a group of
    one process, this is :class:`SwitchNorm2d`, whose arguments and state-dict keys it has.

    Args:
        process_group: the processes; by default all.

    Raises:
        ValueError: from ``forward``, for an input of another rank, channel count or dtype.
        RuntimeError: from the backward pass over several processes, for a gradient of the
            gradient (``create_graph=True``) or a batch of gradients.
    """


class SyncSwitchNorm3d(_SyncSwitchNorm, SwitchNorm3d):
    """:class:`SwitchNorm3d`, synchronized like :class:`SyncSwitchNorm2d`."""


_SYNC: dict[type[nn.Module], type[nn.Module]] = {
    SwitchNorm1d: SyncSwitchNorm1d,
    SwitchNorm2d: SyncSwitchNorm2d,
    SwitchNorm3d: SyncSwitchNorm3d,
}
_PLAIN = {sync: plain for plain, sync in _SYNC.items()}


def convert_sync_switchnorm(
    model: nn.Module, *, process_group: "ProcessGroup | None" = None
) -> nn.Module:
    """Make the SwitchNorm layers of ``model`` SyncSwitchNorm layers, and return ``model``.

    Each layer stays the same object, with its parameters, buffers, hooks and settings.
    Synchronized layers and modules of other kinds are left alone. Call this before
    ``DistributedDataParallel`` or ``torch.compile`` wraps the model.

    Args:
        model: a network or a layer; changed in place.
        process_group: see :class:`SyncSwitchNorm2d`.

    Raises:
        ValueError: a layer is of a subclass without a synchronized form, such as
            :class:`SparseSwitchNorm2d`. The message names it, and nothing is changed.
    """
    for name, layer in model.named_modules():
        known = isinstance(layer, _SyncSwitchNorm) or type(layer) in _SYNC
        if isinstance(layer, SwitchNorm) and not known:
            raise ValueError(
                f"{name or 'the layer'} is a {type(layer).__name__}, which has no synchronized "
                "form; train it without, or replace it by a SwitchNorm first"
            )
    for module in model.modules():
        sync = _SYNC.get(type(module))
        if sync is not None:
            module.__class__ = sync
            assert isinstance(module, _SyncSwitchNorm)
            module.process_group = process_group
    return model


def revert_sync_switchnorm(model: nn.Module) -> nn.Module:
    """Undo :func:`convert_sync_switchnorm` in place, and return ``model``."""
    for module in model.modules():
        plain = _PLAIN.get(type(module))
        if plain is not None:
            module.__class__ = plain
            del module.process_group
    return model
