"""State dict → the shares of IN, LN and BN that each Switchable Normalization layer learned."""

from snzoo.gates.shares import KINDS, LayerGates, average, no_gates, read_gates

__all__ = ["KINDS", "LayerGates", "average", "no_gates", "read_gates"]
