"""SwitchNorm whose batch statistics are those of all processes, for a few samples on each."""

import copy
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from snzoo.nn.reference import Parameters, Recipe
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
        """A copy has the same process group, which can't be copied."""
        memo[id(self)] = layer = type(self).__new__(type(self))
        memo[id(self.process_group)] = self.process_group
        layer.__dict__ = copy.deepcopy(vars(self), memo)
        return layer

    def parameters_and_recipe(self) -> tuple[Parameters, Recipe]:
        parameters, recipe = super().parameters_and_recipe()
        if recipe.batch and dist.is_available() and dist.is_initialized():
            group = self.process_group or dist.group.WORLD
            if dist.get_world_size(group) > 1:
                recipe = recipe._replace(group=group)
        return parameters, recipe


class SyncSwitchNorm1d(_SyncSwitchNorm, SwitchNorm1d):
    """:class:`SwitchNorm1d`, synchronized as :class:`SyncSwitchNorm2d` is.

    The unbiased BN variance counts the values of all processes.
    """


class SyncSwitchNorm2d(_SyncSwitchNorm, SwitchNorm2d):
    """:class:`SwitchNorm2d` with the batch statistics of all processes of a group in training.

    IN and LN statistics are those of each sample; the batch statistics, their gradient and the
    running statistics are as if one process had all samples, which may be spread unevenly. One
    collective operation runs forward and one back, of a few values a channel. So all processes
    must run the layer alike, those whose batch is empty too: the gradients of their parameters
    are 0. As in one process, parameters have the gradients of this process's samples.

    In evaluation mode, with ``using_bn=False``, without ``torch.distributed`` and in a group of
    one process, it is :class:`SwitchNorm2d`, whose arguments and state-dict keys it has.

    Args:
        process_group: the processes, by default all.

    Raises:
        ValueError: from ``forward``, on an input of another rank or channel count.
        RuntimeError: from the backward pass over several processes, on a gradient of the
            gradient (``create_graph=True``) or a batch of gradients.
    """


class SyncSwitchNorm3d(_SyncSwitchNorm, SwitchNorm3d):
    """:class:`SwitchNorm3d`, synchronized as :class:`SyncSwitchNorm2d` is."""


_SYNC: dict[type[nn.Module], type[nn.Module]] = {
    SwitchNorm1d: SyncSwitchNorm1d,
    SwitchNorm2d: SyncSwitchNorm2d,
    SwitchNorm3d: SyncSwitchNorm3d,
}
_PLAIN = {sync: plain for plain, sync in _SYNC.items()}


def convert_sync_switchnorm(
    model: nn.Module, *, process_group: "ProcessGroup | None" = None
) -> nn.Module:
    """``model``, whose SwitchNorm layers are now of the SyncSwitchNorm classes.

    The layers stay the objects they were, with their parameters, buffers, hooks and settings.
    All other modules, subclasses of SwitchNorm and synchronized layers among them, are left
    alone. Call it before ``DistributedDataParallel`` or ``torch.compile`` wrap the model.

    Args:
        model: a network or a layer; changed in place.
        process_group: see :class:`SyncSwitchNorm2d`.
    """
    for module in model.modules():
        sync = _SYNC.get(type(module))
        if sync is not None:
            module.__class__ = sync
            assert isinstance(module, _SyncSwitchNorm)
            module.process_group = process_group
    return model


def revert_sync_switchnorm(model: nn.Module) -> nn.Module:
    """``model``, whose SyncSwitchNorm layers are now SwitchNorm: undoes the conversion."""
    for module in model.modules():
        plain = _PLAIN.get(type(module))
        if plain is not None:
            module.__class__ = plain
            del module.process_group
    return model
