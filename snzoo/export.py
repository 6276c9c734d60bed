"""Export a network to one file for other runtimes: ONNX, or a PyTorch program (``.pt2``).

The file holds the network in evaluation mode and float32. It maps normalized images
(N, C, crop, crop) to logits (N, num_classes), for any N from 1; with ``dynamic_size``, also images
of other heights and widths. The file uses only operations of the runtime, so it runs
without snzoo.
"""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from snzoo.data.imagenet import names_of
from snzoo.environment import require_packages
from snzoo.errors import ArgumentError, CheckpointError, FileError, NonFiniteError, first_line
from snzoo.files import check_writable, write_atomically
from snzoo.nn import SparseSwitchNorm2d, simplify

if TYPE_CHECKING:
    from snzoo.manifest import Entry
    from snzoo.models.resnet import ResNet

Format = Literal["onnx", "pt2"]

BATCH_SIZES = (1, 2, 5)  # the batches that check a file
# Pixels. At stride 32, a smaller image has a single position, which would be traced as a constant.
SMALLEST = 33
# A share of the largest logit. Another order of float32 sums changes logits by 1e-6 to 1e-5 of it.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """A comparison of the logits of an exported file and of the network, on random images.

    Attributes:
        images: the number of images.
        difference: the greatest absolute difference of two logits.
        largest: the greatest absolute logit.
        same: the number of images with the same best class.
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


def choose_format(path: Path, format: Format | None = None) -> Format:
    """Return ``format``, or the one that the suffix of ``path`` names.

    Raises:
        ArgumentError: the suffix names no format, or another one than ``format``.
    """
    suffix = path.suffix.lower().removeprefix(".")
    known: Any = suffix if suffix in get_args(Format) else None
    if format and known and format != known:
        raise ArgumentError(f"{path} has the suffix of {known}, but the format is {format}")
    chosen: Format | None = format or known
    if chosen is None:
        raise ArgumentError(f"{path}: use the suffix .onnx or .pt2, or name the format")
    return chosen


def check_output(path: Path, format: Format) -> None:
    """Check that ``path`` can be written in ``format``, before any other work.

    Raises:
        FileError: ``path`` is not a regular file in a folder that can be written.
        MissingPackageError: packages that ONNX needs are not installed; pt2 needs none.
    """
    check_writable(path)
    if path.exists() and not path.is_file():  # a device or a pipe
        raise FileError(f"can't write {path}: it must be a regular file, to be checked")
    if format == "onnx":
        require_packages("onnx", "onnxscript", "onnxruntime", extra="export", purpose="ONNX")


def export(
    model: ResNet, path: str | Path, *, format: Format | None = None, dynamic_size: bool = False
) -> Parity:
    """Export a network to ``path``, after a check of the file.

    The written file is loaded again, by ONNX Runtime or :func:`torch.export.load`. It runs on
    random images in batches of 1, 2 and 5; with ``dynamic_size``, the batches have several image
    sizes. Its logits must be those of ``model`` within 1e-4 of the largest one. Otherwise an
    earlier file at ``path`` is kept.

    Sparse SN is exported as :func:`snzoo.nn.simplify` makes it: its shares are constants.

    The file carries the model's name, class names, preprocessing and license as JSON: under the
    key ``snzoo`` of the metadata in ONNX, as the extra file ``snzoo.json`` in pt2. The input and
    the output of ONNX are called ``images`` and ``logits``.

    Args:
        model: a network of :func:`snzoo.create_model`, described by ``model.spec``. A copy on the
            CPU is exported, so the network is not changed.
        path: the file to write.
        format: ``"onnx"`` or ``"pt2"`` (default: the format that the suffix names).
        dynamic_size: allow images of any height and width from 33 pixels.

    Returns:
        The result of the check.

    Raises:
        ArgumentError: see :func:`choose_format`; or the network is not the one that ``model.spec``
            describes.
        FileError, MissingPackageError: see :func:`check_output`.
        NonFiniteError: the logits of ``model`` are not finite.
        CheckpointError: the file gives other logits, or does not run; or this version of PyTorch
            cannot convert the network to ONNX (2.6 converts only some networks).

    >>> model = snzoo.create_model("resnet50v1_sn_8x1", pretrained=True)
    >>> print(export(model, "model.onnx", dynamic_size=True))
    largest difference 7.6e-06 of logits up to 5.1, same best class in 8 of 8
    """
    path, spec = Path(path), model.spec
    if spec is None:
        raise ArgumentError("the network has no spec; build it with snzoo.create_model")
    format = choose_format(path, format)
    check_output(path, format)
    crop = spec.preprocessing.crop
    if dynamic_size and crop < SMALLEST:
        raise ArgumentError(f"dynamic sizes start at {SMALLEST} pixels; {spec.name} takes {crop}")
    write, run = (_to_onnx, _run_onnx) if format == "onnx" else (_to_pt2, _run_pt2)
    # The caller's inference mode and autocast must not be traced.
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        model = model.to(memory_format=torch.contiguous_format)
        batches = _random_batches(model.conv1.in_channels, crop, dynamic_size=dynamic_size)
        expected = _compute_logits(model, batches, spec)
        if any(isinstance(module, SparseSwitchNorm2d) for module in model.modules()):
            simplify(model)  # the file would compute SparsestMax for each batch
        program = _trace(model, batches[1], dynamic_size=dynamic_size)
        with write_atomically(path) as partial:
            partial.write_bytes(write(program, _describe(spec)))
            try:
                found = run(partial, batches)
            except Exception as error:  # e.g. a size that became a constant
                raise CheckpointError(
                    f"{path} was not written, because the {format} file fails: {first_line(error)}"
                ) from error
            return _compare(expected, found, path, format)


def _random_batches(channels: int, crop: int, *, dynamic_size: bool) -> list[Tensor]:
    """Return a batch of each batch size. Dynamic image sizes include odd ones."""
    sizes = [(crop, crop)] * len(BATCH_SIZES)
    if dynamic_size:
        sizes = [(crop, crop), (crop + 32, crop + 64), (crop + 37, crop + 10)]
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, channels, *size, generator=generator)
        for n, size in zip(BATCH_SIZES, sizes, strict=True)
    ]


@torch.inference_mode()
def _compute_logits(model: nn.Module, batches: list[Tensor], spec: Entry) -> Tensor:
    """Return the checked logits (images, num_classes) of the network itself."""
    logits = torch.cat([model(batch) for batch in batches])
    if spec.num_classes and logits.shape[1] != spec.num_classes:
        raise ArgumentError(
            f"model.spec of {spec.name} has {spec.num_classes:,} classes, but the network returns "
            f"{logits.shape[1]:,} values; set model.spec to a spec with its classes"
        )
    if not logits.isfinite().all():
        raise NonFiniteError(f"the logits of {spec.name} are not finite; are these its weights?")
    return logits


def _describe(spec: Entry) -> str:
    document = {
        "model": spec.name,
        "classes": names_of(spec.classes),
        "preprocessing": spec.preprocessing.as_dict(),
        "license": spec.license,
    }
    return json.dumps(document, ensure_ascii=False)


def _trace(model: nn.Module, example: Tensor, *, dynamic_size: bool) -> ExportedProgram:
    # torch 2.6 would refuse named sizes because of guards without effect (on even and odd sizes).
    size = {2: Dim.AUTO, 3: Dim.AUTO} if dynamic_size else {}
    shapes = {0: Dim("batch", min=1), **size}
    program = torch.export.export(model, (example,), dynamic_shapes=(shapes,), strict=False)
    for node in program.graph.nodes:  # stack traces contain paths of this machine
        node.meta.pop("stack_trace", None)
    program.graph.eliminate_dead_code()  # torch 2.6 leaves calls that it cannot save
    return program


def _to_onnx(program: ExportedProgram, description: str) -> bytes:
    import onnx

    if any(node.target is torch.ops.aten.addcmul.default for node in program.graph.nodes):
        # torch 2.6 fails to decompose addcmul if the batch size is symbolic.
        table = {torch.ops.aten.addcmul.default: lambda x, a, b, value=1: x + value * a * b}
        program = program.run_decompositions(table)
    try:
        with warnings.catch_warnings(action="ignore"):  # the exporter warns about itself
            exported = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=["logits"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch 2.6 cannot convert all networks
        raise CheckpointError(
            f"PyTorch {torch.__version__} cannot convert this network to ONNX "
            f"({type(error).__name__}); install a newer version, or use the format pt2"
        ) from error
    assert exported is not None
    model = exported.model_proto
    graph = model.graph
    for item in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del item.metadata_props[:]  # notes for developers of the exporter
    _name_sizes(graph)
    onnx.helper.set_model_props(model, {"snzoo": description})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _name_sizes(graph: Any) -> None:
    """Rename dynamic sizes, which the exporter calls ``s0`` and the like."""
    names = ("batch", "channels", "height", "width")
    sizes = graph.input[0].type.tensor_type.shape.dim
    new = {d.dim_param: name for d, name in zip(sizes, names, strict=True) if d.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda m: new.get(m[0], m[0]), size.dim_param)


def _run_onnx(path: Path, batches: list[Tensor]) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only, no remarks on the machine
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in batches]
    return torch.cat([torch.from_numpy(output) for output in outputs])


def _to_pt2(program: ExportedProgram, description: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"snzoo.json": description})
    return buffer.getvalue()


@torch.inference_mode()
def _run_pt2(path: Path, batches: list[Tensor]) -> Tensor:
    # load() refuses a path without the suffix .pt2, but takes an open file. It warns needlessly.
    with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
        network = torch.export.load(file).module()
    return torch.cat([network(batch) for batch in batches])


def _compare(expected: Tensor, found: Tensor, path: Path, format: Format) -> Parity:
    """Return how logits differ; raise CheckpointError if they differ by more than rounding."""
    parity = Parity(
        images=len(expected),
        difference=float((found - expected).abs().max()),
        largest=float(expected.abs().max()),
        same=int((found.argmax(1) == expected.argmax(1)).sum()),
    )
    if not parity.difference <= TOLERANCE * parity.largest:  # also refuses NaN
        raise CheckpointError(
            f"{path} was not written, because the {format} file gives other logits: {parity}; "
            f"at most {TOLERANCE:.0e} of the largest may differ. Try another format"
        )
    return parity
