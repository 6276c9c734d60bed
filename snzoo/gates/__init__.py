"""The gates of SN layers: the shares of IN, LN and BN that each layer learned."""

from snzoo.gates.load import load_gates
from snzoo.gates.shares import STATS, LayerGates, average, read_gates

__all__ = ["STATS", "LayerGates", "average", "load_gates", "read_gates"]
