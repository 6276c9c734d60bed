"""Take the backbone out of a file of the face networks published with Switchable Normalization."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PREFIX, HEAD = "basemodel.", "head."


def strip_face_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the backbone, or ``state`` as it is if it is of another network.

    ``basemodel.conv1.weight`` becomes ``conv1.weight``. ``head.weight``, a row for each person of
    the training set, is dropped, because embeddings do not depend on it. If there are other keys
    too, nothing is changed, so that the error about the network names them as they are.

    Args:
        state: the state dict, without the prefixes of wrappers.
    """
    backbone = {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}
    known = all(key.startswith((PREFIX, HEAD)) for key in state)
    return backbone if backbone and known else dict(state)
