"""Rename the keys of the backbones in SwitchNorm_Detection's files to those of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from snzoo.errors import CheckpointError

# With an FPN the backbone is an attribute of the FPN.
PREFIX = re.compile(r"Conv_Body\.(conv_body\.)?")
# res1 is the stem, res2 to res5 are the stages.
STAGE = re.compile(r"res([1-5])\.")


def rename_detectron_keys(state: Mapping[str, Tensor], *, where: str | Path) -> dict[str, Tensor]:
    """Return the state dict with renamed keys, or as it is if they are not Detectron's.

    ``Conv_Body.conv_body.res2.0.conv1.weight`` becomes ``layer1.0.conv1.weight``, and
    ``Conv_Body.classifier.bias`` becomes ``fc.bias``. If two keys would become one, none is
    renamed, so that the error about the network names them as they are.

    Args:
        state: the state dict.
        where: the name of the file, for errors.

    Raises:
        CheckpointError: the keys are those of a whole detector.
    """
    of_backbone = [key for key in state if PREFIX.match(key)]
    if of_backbone and len(of_backbone) < len(state):
        raise CheckpointError(
            f"{where} is a whole detector, not a backbone; save its backbone alone: "
            "{k: v for k, v in state_dict.items() if k.startswith('Conv_Body.')}"
        )
    renamed = {_rename(key): value for key, value in state.items()}
    return renamed if of_backbone and len(renamed) == len(state) else dict(state)


def _rename(key: str) -> str:
    key = PREFIX.sub("", key, count=1)
    if found := STAGE.match(key):
        stage = int(found[1])
        return key[found.end() :] if stage == 1 else f"layer{stage - 1}.{key[found.end() :]}"
    return re.sub(r"^classifier\.", "fc.", key)
