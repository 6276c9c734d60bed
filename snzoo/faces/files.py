"""Write embeddings to a npz or parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from snzoo.data import is_image
from snzoo.environment import require_packages
from snzoo.errors import ArgumentError
from snzoo.faces.embedding import Embeddings
from snzoo.files import check_writable, write_atomically

SUFFIXES = (".npz", ".parquet")


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Check that a file of embeddings can be written and replaces no input.

    Args:
        path: the file to write.
        inputs: the files and folders that are read.

    Raises:
        ArgumentError: the suffix is unknown, or the file is an input.
        MissingPackageError: the suffix is ``.parquet``, but pyarrow is not installed.
        FileError: the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"{path}: the suffix of embeddings must be {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        require_packages("pyarrow", extra="parquet", purpose=f"writing {path}")
    if is_image(path.name) or path.resolve() in [file.resolve() for file in inputs]:
        raise ArgumentError(f"{path} is not overwritten: it is an input; name another file")
    check_writable(path)


def save_embeddings(path: Path, names: Sequence[str], embeddings: Embeddings) -> None:
    """Write the names of M photos and their embeddings (M, D), in float32.

    A npz file has the arrays ``names`` (of text) and ``embeddings``, which
    ``numpy.load(path, allow_pickle=False)`` reads. A parquet file has the columns ``name`` and
    ``embedding``, a list of D numbers.

    Raises:
        FileError: the file cannot be written; an earlier file is unchanged.
    """
    with write_atomically(path) as temporary:
        if path.suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, names=np.array(names, np.str_), embeddings=embeddings)
            return
        import pyarrow
        from pyarrow import parquet

        count, size = embeddings.shape
        values = pyarrow.array(np.ascontiguousarray(embeddings).reshape(count * size))
        lists = pyarrow.FixedSizeListArray.from_arrays(values, size)
        table = pyarrow.table({"name": pyarrow.array(list(names)), "embedding": lists})
        parquet.write_table(table, temporary)
