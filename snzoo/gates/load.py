"""Load the gates of a model by its name or path."""

from __future__ import annotations

import os
from pathlib import Path

from snzoo.gates.shares import LayerGates, harden, missing_gates_error, read_gates
from snzoo.models.architectures import SWITCH_NORMS
from snzoo.registry import get_info
from snzoo.spec import HUB, LOCAL, ModelSpec, zoo_names

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".h5", ".hdf5")


def load_gates(name_or_path: str | Path) -> list[LayerGates]:
    """Load the gates of all SN layers of a network, in the order of depth.

    Args:
        name_or_path: a name of the zoo, whose weights are downloaded if necessary;
            ``hf-hub:OWNER/NAME[@REVISION]``; ``local-dir:PATH``; the path of a checkpoint of any
            network with SN layers; or the path of a folder of :func:`snzoo.save_pretrained`.

    Raises:
        UnknownModelError: no model has this name.
        CheckpointError: the checkpoint cannot be read, or has no SN layer.
        DownloadError, ChecksumError, CacheError: the weights cannot be downloaded or stored.

    >>> load_gates("resnet18v1_sn_clothing")[0].stats
    ('IN', 'LN', 'BN')
    """
    from snzoo.weights import fetch_weights, read_state_dict, weights_of

    source = _find_source(name_or_path)
    if source is None:
        spec = get_info(os.fspath(name_or_path))
        if spec.file and spec.network.norm not in SWITCH_NORMS:  # avoids the download
            raise missing_gates_error(spec.name)
        file = fetch_weights(spec, spec.layout)
    else:
        file = weights_of(source)
    gates = read_gates(read_state_dict(file), where=file)
    hard = source is None and get_info(os.fspath(name_or_path)).arguments.get("hard_gates")
    return [harden(layer) for layer in gates] if hard else gates


def _find_source(name_or_path: str | Path) -> Path | None:
    """Return the local checkpoint or folder, or None for a name."""
    name = os.fspath(name_or_path)
    if isinstance(name_or_path, Path):
        return name_or_path
    if name.startswith(HUB):
        return ModelSpec.find(name).weights
    if name.startswith(LOCAL):
        return Path(name.removeprefix(LOCAL))
    is_path = name != os.path.basename(name) or name.lower().endswith(CHECKPOINTS)
    if name not in zoo_names() and (is_path or os.path.exists(name)):
        return Path(name)
    return None  # also for an unknown name, so that the error suggests a similar one
