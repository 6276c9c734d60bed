"""Face recognition: alignment and embeddings of photos, heads for training, and figures.

``import snzoo.faces`` is cheap: each name below is imported when it is first used.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
    from snzoo.faces.align import align as align
    from snzoo.faces.align import similarity_transform as similarity_transform
    from snzoo.faces.embedding import embed as embed
    from snzoo.faces.embedding import similarity as similarity
    from snzoo.faces.heads import ArcFace as ArcFace
    from snzoo.faces.heads import CosFace as CosFace
    from snzoo.faces.identification import Identification as Identification
    from snzoo.faces.identification import identify as identify
    from snzoo.faces.identification import identify_megaface as identify_megaface
    from snzoo.faces.megaface import append_noise_mark as append_noise_mark
    from snzoo.faces.megaface import read_features as read_features
    from snzoo.faces.megaface import read_matrices as read_matrices
    from snzoo.faces.megaface import write_features as write_features
    from snzoo.faces.pairs import FacePairs as FacePairs
    from snzoo.faces.pairs import balance as balance
    from snzoo.faces.pairs import read_pairs as read_pairs
    from snzoo.faces.sharded import ShardedHead as ShardedHead
    from snzoo.faces.verification import Verification as Verification
    from snzoo.faces.verification import verify as verify

_MODULES = {
    "ArcFace": "heads",
    "CosFace": "heads",
    "FacePairs": "pairs",
    "Identification": "identification",
    "ShardedHead": "sharded",
    "Verification": "verification",
    "align": "align",
    "append_noise_mark": "megaface",
    "balance": "pairs",
    "embed": "embedding",
    "identify": "identification",
    "identify_megaface": "identification",
    "read_features": "megaface",
    "read_matrices": "megaface",
    "read_pairs": "pairs",
    "similarity": "embedding",
    "similarity_transform": "align",
    "verify": "verification",
    "write_features": "megaface",
}
__all__ = [*_MODULES]


if not _typing.TYPE_CHECKING:  # or no misspelled name would be an error for type checkers

    def __getattr__(name: str) -> _typing.Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'snzoo.faces' has no attribute {name!r}")
        value = getattr(_import_module(f"snzoo.faces.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
