"""A network → one file that other runtimes take: ONNX, or a PyTorch program (``.pt2``).

Both hold the network in evaluation mode, in float32, from normalized images
(N, C, crop, crop) to logits (N, classes), for any N from 1. Only operations of the runtimes
themselves are in them, and nothing of snzoo is needed to run one.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from snzoo.data.imagenet import names_of
from snzoo.errors import SnzooError
from snzoo.files import check_writable, write_atomically

if TYPE_CHECKING:
    from snzoo.manifest import Entry
    from snzoo.models.resnet import ResNet

Format = Literal["onnx", "pt2"]

BATCH_SIZES = (1, 2, 5)  # of the check; the network is traced with 2
TOLERANCE = 1e-4  # of the largest logit; float32 sums in another order differ by 1e-6 to 1e-5
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # the extra "export"


@dataclass(frozen=True)
class Parity:
    """How the logits of a written file compare with those of the network, over random images.

    ``difference`` is the greatest absolute one, ``largest`` the greatest absolute logit, and
    ``same`` counts the images of ``images`` that both put into the same class.
    """

    images: int
    difference: float
    largest: float
    same: int

    def __str__(self) -> str:
        return (
            f"largest difference {self.difference:.1e} of logits up to {self.largest:.1f}, "
            f"same best class in {self.same} of {self.images}"
        )


def check_output(path: Path, format: Format | None = None) -> Format:
    """The format to write, once all is there that writing ``path`` takes.

    Args:
        format: default: what the ending of ``path`` says.

    Raises:
        SnzooError: the ending says nothing, or the opposite of ``format``; ``path`` is not a
            file in a folder that may be written; or packages are missing.
    """
    ending = path.suffix.lower().removeprefix(".")
    known = ending if ending in get_args(Format) else None
    if format and known and format != known:
        raise SnzooError(f"{path} ends as a {known} file, and the format is {format}: change one")
    chosen: Any = format or known
    if chosen is None:
        raise SnzooError(f"{path}: end it in .onnx or .pt2, or name the format")
    check_writable(path)
    missing = [name for name in PACKAGES if not find_spec(name)]
    if chosen == "onnx" and missing:
        raise SnzooError(
            f"ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)} (or the extra "
            "snzoo[export]); format pt2 needs nothing more"
        )
    result: Format = chosen
    return result


def export(
    model: ResNet, path: str | Path, *, entry: Entry, format: Format | None = None
) -> Parity:
    """Write ``model`` to ``path``, whole and checked or not at all.

    The written file is loaded again, by ONNX Runtime or :func:`torch.export.load`, and run on
    random images in batches of 1, 2 and 5. Its logits must be those of ``model`` within
    ``TOLERANCE`` of the largest; a best class can then differ between near ties only.

    The file carries the model's name, the class names, the preprocessing and the license as
    JSON: in ONNX under the key ``snzoo`` of its metadata, in pt2 as the extra file
    ``snzoo.json``. Input and output of ONNX are ``images`` and ``logits``.

    Args:
        model: stays as it is; a copy on the CPU is exported.
        entry: whose classes and preprocessing are those of ``model``; without classes, the
            file gives what the model gives.
        format: default: what the ending of ``path`` says.

    Raises:
        SnzooError: see :func:`check_output`; ``model`` is not of ``entry``, gives logits that
            are not finite, or the file would give others.
        FileError: the file can't be written.
    """
    path = Path(path)
    format = check_output(path, format)
    write, run = (_to_onnx, _run_onnx) if format == "onnx" else (_to_pt2, _run_pt2)
    # The modes of the caller are not to be traced.
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        model = model.to(memory_format=torch.contiguous_format)
        batches = _random_batches(model.conv1.in_channels, entry.preprocessing.crop)
        expected = _logits(model, batches, entry)
        program = _trace(model, batches[BATCH_SIZES.index(2)])
        with write_atomically(path) as partial:
            partial.write_bytes(write(program, _description(entry)))
            return _compare(expected, run(partial, batches), path, format)


def _random_batches(channels: int, crop: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, channels, crop, crop, generator=generator) for n in BATCH_SIZES]


@torch.inference_mode()
def _logits(model: nn.Module, batches: list[Tensor], entry: Entry) -> Tensor:
    """(images, classes) Of the network itself, checked."""
    logits = torch.cat([model(batch) for batch in batches])
    if entry.num_classes and logits.shape[1] != entry.num_classes:
        raise SnzooError(
            f"{entry.name} has {entry.num_classes:,} classes, and this network gives "
            f"{logits.shape[1]:,} values: name the entry it was made from"
        )
    if not logits.isfinite().all():
        raise SnzooError(f"the logits of {entry.name} are not finite; are these its weights?")
    return logits


def _description(entry: Entry) -> str:
    document = {
        "model": entry.name,
        "classes": names_of(entry.classes),
        "preprocessing": entry.preprocessing.as_dict(),
        "license": entry.license,
    }
    return json.dumps(document, ensure_ascii=False)


def _trace(model: nn.Module, example: Tensor) -> ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:  # where the code lies on this machine is nobody's business
        node.meta.pop("stack_trace", None)
    return program


def _to_onnx(program: ExportedProgram, description: str) -> bytes:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own ways
        exported = torch.onnx.export(
            program,
            dynamic_shapes=({0: "batch"},),  # its name; the program knows that it is dynamic
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    graph = model.graph
    for item in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]  # notes for those who mend the exporter
    onnx.helper.set_model_props(model, {"snzoo": description})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _run_onnx(path: Path, batches: list[Tensor]) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which it raises; not what it thinks of the machine
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in batches]
    return torch.cat([torch.from_numpy(output) for output in outputs])


def _to_pt2(program: ExportedProgram, description: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"snzoo.json": description})
    return buffer.getvalue()


@torch.inference_mode()
def _run_pt2(path: Path, batches: list[Tensor]) -> Tensor:
    # A file, because it warns of a name with another ending; of its own buffers it does too.
    with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
        network = torch.export.load(file).module()
    return torch.cat([network(batch) for batch in batches])


def _compare(expected: Tensor, found: Tensor, path: Path, format: Format) -> Parity:
    """Raises SnzooError where they differ by more than rounding."""
    parity = Parity(
        images=len(expected),
        difference=float((found - expected).abs().max()),
        largest=float(expected.abs().max()),
        same=int((found.argmax(1) == expected.argmax(1)).sum()),
    )
    if not parity.difference <= TOLERANCE * parity.largest:  # nor NaN
        raise SnzooError(
            f"{path} was not written, since as {format} the network gives other logits: {parity}, "
            f"where {TOLERANCE:.0e} of the largest may differ; try another format"
        )
    return parity
