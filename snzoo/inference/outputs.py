"""Check the files that a command writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from snzoo.data import is_image
from snzoo.errors import FileError
from snzoo.spec import ModelSpec
from snzoo.weights.folder import FILES


def check_inputs_survive(
    outputs: Iterable[Path], inputs: Iterable[str | Path], specs: Iterable[ModelSpec]
) -> None:
    """Check that no output replaces an input.

    Args:
        outputs: the files to write.
        inputs: the paths of the photos.
        specs: the models, whose checkpoints and folders are inputs.

    Raises:
        FileError: an output is an input, or named like a photo.
    """
    files = {Path(path).resolve() for path in inputs}
    for spec in specs:
        if spec.weights:
            read = (spec.weights, *(spec.weights / name for name in FILES))
            files |= {file.resolve() for file in read}
    for output in outputs:
        if output.resolve() in files or is_image(output.name):
            raise FileError(
                f"{output} is not overwritten: it is an input, or named like one; name another file"
            )
