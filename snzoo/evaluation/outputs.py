"""Check the files that an evaluation writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from snzoo.data import is_image
from snzoo.errors import FileError
from snzoo.spec import ModelSpec
from snzoo.weights.folder import FILES


def check_inputs_survive(
    outputs: Iterable[Path], data: str | Path | None, specs: Iterable[ModelSpec]
) -> None:
    """Check that no output replaces an input.

    Args:
        outputs: the files to write.
        data: the path of the photos, if they have one.
        specs: the models, whose checkpoints and folders are inputs.

    Raises:
        FileError: an output is an input, or named like a photo.
    """
    inputs = set() if data is None else {Path(data).resolve()}
    for spec in specs:
        if spec.weights:
            files = (spec.weights, *(spec.weights / name for name in FILES))
            inputs |= {file.resolve() for file in files}
    for output in outputs:
        if output.resolve() in inputs or is_image(output.name):
            raise FileError(
                f"{output} is not overwritten: it is an input, or named like one; name another file"
            )
