"""Validate a face network in training: is the same person on both photos of a pair?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from snzoo.data.batches import count_batches
from snzoo.errors import SnzooError
from snzoo.faces.embedding import iter_embeddings
from snzoo.faces.pairs import FacePairs
from snzoo.faces.verification import verify
from snzoo.inference.network import Network, default_batch_size
from snzoo.processes import Processes
from snzoo.training.plan import Plan


class FaceValidation(NamedTuple):
    """Figures on pairs of photos.

    Attributes:
        pairs: The number of pairs.
        correct: The pairs that are right with the threshold of the other folds.
        equal_error_rate: See :class:`snzoo.faces.verification.Verification`.
    """

    pairs: int
    correct: int
    equal_error_rate: float

    @property
    def cases(self) -> int:
        return self.pairs

    def log(self) -> dict[str, Any]:
        """Return what an epoch's line of the log says of it."""
        return {"pairs": self._asdict()}

    def __str__(self) -> str:
        share = 100 * self.correct / self.pairs
        rate = 100 * self.equal_error_rate
        return f"{self.correct}/{self.pairs} pairs ({share:.2f} %), equal error rate {rate:.2f} %"


def validate_faces(
    model: nn.Module,
    plan: Plan,
    device: torch.device,
    processes: Processes,
    *,
    workers: int,
    channels_last: bool,
    on_error: Callable[[str, SnzooError], None],
) -> FaceValidation:
    """Return the figures of a face network on all pairs of the verification set.

    The processes share the photos. The network is left in evaluation mode.

    Args:
        on_error: Not called: a pair needs both photos, so a photo that cannot be read is an error.

    Raises:
        DataError: a photo cannot be read; the message names it.
        NonFiniteError: an embedding is not finite.
    """
    pairs = plan.validation
    assert isinstance(pairs, FacePairs)
    network = Network(
        model, plan.spec.preprocessing, name=plan.name, device=device, channels_last=channels_last
    )
    size = default_batch_size(device)
    numbers = processes.share(range(count_batches(len(pairs.photos), size)))
    own = list(
        iter_embeddings(network, pairs.photos, batch_size=size, workers=workers, numbers=numbers)
    )
    embeddings = np.concatenate([rows for parts in processes.gather(own) for rows in parts])
    found = verify(embeddings, pairs.first, pairs.second, pairs.same, folds=pairs.folds)
    return FaceValidation(len(pairs.same), found.accuracy.correct, found.equal_error_rate)
