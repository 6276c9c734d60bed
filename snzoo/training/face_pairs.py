"""Find the pairs of photos that a face network is validated with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from snzoo.errors import DataError

if TYPE_CHECKING:
    from snzoo.faces.pairs import FacePairs

# What a data set may hold, in the order of preference: those of insightface have several sets.
PLACES = ("val", "validation", "lfw.bin", "agedb_30.bin", "cfp_fp.bin", "lfw")


def find_pairs(data: str | Path, validation: str | Path | None) -> FacePairs:
    """Return the pairs of a verification set, as many genuine as impostor ones.

    See :func:`snzoo.faces.read_pairs`.

    Args:
        data: The path of the training photos, or of the data set that has both.
        validation: The path of the verification set. Default: it is searched in ``data``.

    Raises:
        DataError: there is no set, it cannot be read, or it has too few pairs for its folds.
    """
    from snzoo.faces.pairs import balance, check_folds, read_pairs

    places = [Path(data) / place for place in PLACES]
    found = [place for place in places if place.exists()] if validation is None else [validation]
    if not found:
        raise DataError(
            f"{data} holds no pairs of faces to validate with ({', '.join(PLACES)}); name a "
            "verification set: --validation PATH"
        )
    pairs = read_pairs(found[0])
    check_folds(pairs, found[0])
    return balance(pairs)
