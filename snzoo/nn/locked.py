"""Make networks with locked SN layers cheaper, in place, for evaluation."""

from collections.abc import Iterator

from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_weights, parametrize

from snzoo.nn._compat import has_hooks
from snzoo.nn.convert import check_tensors, convert_to_batchnorm
from snzoo.nn.functional import to_logits
from snzoo.nn.fused import Folded
from snzoo.nn.sparse import SparseSwitchNorm2d
from snzoo.nn.switchnorm import SwitchNorm2d


def simplify(model: nn.Module) -> nn.Module:
    """Replace sparse SN layers by cheaper ones of the same function, and return ``model``.

    A layer that locked to BN becomes a batch norm. If a convolution precedes it, and nothing else
    uses the convolution, it is folded into the weights and the bias of the convolution. Every other
    layer becomes a :class:`SwitchNorm2d` with the same shares, which does not compute statistics
    with a share of 0 on a CPU. Folding changes the results of a network by rounding only.

    The keys of the state dict change, so load weights first, and save them before. Layers are
    found inside of any network, and folded in those that ``torch.fx.symbolic_trace`` can trace.

    Args:
        model: a network in evaluation mode; changed in place.

    Raises:
        ValueError: the network is in training mode, has no :class:`SparseSwitchNorm2d`, or has one
            with other tensors, such as a parametrized one. Nothing is changed then.
    """
    if model.training:
        raise ValueError("simplify is for evaluation; call model.eval() first")
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, SparseSwitchNorm2d)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no SparseSwitchNorm2d to simplify")
    for name, layer in layers.items():
        check_tensors(layer, name or "the layer")
    locked = {layer for layer in layers.values() if _is_batch_norm(layer)}
    pairs = [pair for pair in _find_pairs(model) if pair[1] in locked]
    for layer in layers.values():
        if layer in locked:
            convert_to_batchnorm(layer)
        else:
            _become_switchnorm(layer)
    for conv, norm in pairs:
        _fold(conv, norm)
    return model


def _is_batch_norm(layer: SparseSwitchNorm2d) -> bool:
    """Return whether a layer computes what a batch norm does with its running statistics."""
    mean, var = layer.shares()
    averages = layer.using_moving_average and layer.running_mean is not None
    return averages and bool(mean[-1] == var[-1] == 1)


def _find_pairs(model: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module]]:
    """Yield the convolutions whose output only one norm uses, and these norms."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # control flow that depends on values raises almost anything
        return
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = (model.get_submodule(str(n.target)) for n in (before, node))
        once = calls.count(before.target) == calls.count(node.target) == 1
        plain = not (has_hooks(conv) or has_hooks(norm) or parametrize.is_parametrized(conv))
        if type(conv) is nn.Conv2d and once and plain and before.target not in read:
            yield conv, norm


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """Multiply and shift the output channels of ``conv`` as ``norm`` does, which is left empty."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps),
        *(norm.weight, norm.bias),
    )
    norm.__class__ = Folded  # type: ignore[assignment]
    norm._parameters.clear()
    norm._buffers.clear()


def _become_switchnorm(layer: SparseSwitchNorm2d) -> None:
    for gates, shares in zip((layer.mean_weight, layer.var_weight), layer.shares(), strict=True):
        gates.data.copy_(to_logits(shares))
    for name in ("mean_fixed", "var_fixed", "radius"):
        del layer._buffers[name]
    layer.__class__ = SwitchNorm2d  # type: ignore[assignment]
