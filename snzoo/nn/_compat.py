"""The private symbols of torch that snzoo uses, and what happens in a version without them.

torch has no public names for these. A symbol that is absent is ``None`` here, and the plain
formula of :mod:`snzoo.nn.functional` then takes the place of whatever needs the symbol.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _find(path: str, default: Any = None) -> Any:
    """Return ``torch.<path>``, or ``default`` where a part of it is absent."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, default)
    return found


_forward_ad = _find("autograd.forward_ad")
_is_jit_tracing = _find("_C._is_tracing")
_are_transforms_active = _find("_C._are_functorch_transforms_active")
_count_dispatch_modes = _find("_C._len_torch_dispatch_stack")
_is_batched_tensor = _find("_C._functorch.is_legacy_batchedtensor")

# Return how many modes see the calls of torch's functions.
count_function_modes: Callable[[], int] = _find("_C._len_torch_function_stack", lambda: 1)

# Return whether torch.jit.trace runs, in which the sizes of a shape are tensors. torch.compile
# knows this function, and not the faster one above.
is_jit_tracing: Callable[[], bool] = _find("jit.is_tracing", lambda: False)

_OBSERVERS_UNKNOWN = None in (
    _is_jit_tracing,
    _are_transforms_active,
    _count_dispatch_modes,
    _is_batched_tensor,
)

# Dictionaries of hooks. Where this version of torch keeps them is unknown if they are absent.
_UNKNOWN = True
_global_forward_hooks = _find("nn.modules.module._global_forward_hooks", _UNKNOWN)
_global_forward_pre_hooks = _find("nn.modules.module._global_forward_pre_hooks", _UNKNOWN)
_global_backward_hooks = _find("nn.modules.module._global_backward_hooks", _UNKNOWN)
_global_backward_pre_hooks = _find("nn.modules.module._global_backward_pre_hooks", _UNKNOWN)

# Operations that the CPU backend calls.
unsafe_view = _find("ops.aten._unsafe_view")
native_batch_norm_backward = _find("ops.aten.native_batch_norm_backward")
native_group_norm = _find("native_group_norm")
batch_norm_update_stats = _find("batch_norm_update_stats")
HAS_CPU_OPERATIONS = None not in (
    unsafe_view,
    native_batch_norm_backward,
    native_group_norm,
    batch_norm_update_stats,
)


def is_traced(x: Any) -> bool:
    """Return whether a compiler, an exporter or a transform looks at the operations on ``x``.

    Such code needs plain differentiable operations that do not write in place.
    """
    return (
        type(x) not in (Tensor, nn.Parameter)  # FakeTensor, DTensor, torch.fx.Proxy, ...
        or torch.compiler.is_compiling()
        or _OBSERVERS_UNKNOWN
        or _is_jit_tracing()
        or _are_transforms_active()
        or _count_dispatch_modes() > 0
        or getattr(_forward_ad, "_current_level", 0) >= 0
    )


def is_batched_gradient(grad: Tensor) -> bool:
    """Return whether ``grad`` is several gradients: ``is_grads_batched``, or vmap of backward."""
    # A compiler cannot trace these two functions.
    return not torch.compiler.is_compiling() and (
        (_are_transforms_active is not None and _are_transforms_active())
        or (_is_batched_tensor is not None and _is_batched_tensor(grad))
    )


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling ``module`` does more than its class's ``forward``."""
    # Unrolled, because this runs twice per normalization layer.
    own = vars(module)
    return bool(
        "forward" in own
        or own.get("_forward_hooks", _UNKNOWN)
        or own.get("_forward_pre_hooks", _UNKNOWN)
        or own.get("_backward_hooks", _UNKNOWN)
        or own.get("_backward_pre_hooks", _UNKNOWN)
        or _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )
