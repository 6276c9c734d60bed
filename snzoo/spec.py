"""Find the ModelSpec for a name, a folder, a repository or a file. It builds and loads networks.

torch is imported only when a network or a checkpoint is needed, so that listing models is fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from snzoo.entry import Entry
from snzoo.errors import ArgumentError, CheckpointError, UnknownModelError
from snzoo.manifest import load_manifest, parse_description
from snzoo.models.architectures import ARCHITECTURES, Architecture, clean_options
from snzoo.preprocessing import FACES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from snzoo.models.build import AnyResNet

HUB, LOCAL = "hf-hub:", "local-dir:"


@dataclass(frozen=True)
class ModelSpec(Entry):
    """The description of a network: an entry of the manifest, and the place of the weights.

    Attributes:
        weights: The checkpoint file or the folder of :func:`snzoo.save_pretrained` from which the
            weights are loaded. If None, the weights are the zoo's, if the entry has a file.
        origin: The zoo model whose weights were converted to another norm, and whose license
            therefore applies.
        alias: The last part of the path or the repository by which the user named the model.
    """

    weights: Path | None = None
    origin: str | None = None
    alias: str | None = field(default=None, compare=False)

    @classmethod
    def find(
        cls, name: str | os.PathLike[str] | None = None, *, weights: str | Path | None = None
    ) -> Self:
        """Return the spec of a model. A repository on the Hugging Face hub is downloaded.

        Args:
            name: A name of :func:`snzoo.list_models`; ``hf-hub:OWNER/NAME[@REVISION]``;
                ``local-dir:PATH``; or the path of a folder or a checkpoint with a description. If
                a model and a path have the same name, a string means the model, and a
                ``pathlib.Path`` means the path.
            weights: A checkpoint, folder or repository to load instead of the zoo's weights.
                Without a description in it, ``name`` is required.

        Raises:
            UnknownModelError: no model has this name.
            ArgumentError: neither argument is given, or both name weights.
            CheckpointError, ManifestError: the checkpoint cannot be read, belongs to another
                network, or has no description although ``name`` is not given.
            DownloadError: the hub does not return the repository.
        """
        source = None if weights is None else _locate(weights)
        if name is not None and not _is_zoo_name(name):
            if not isinstance(name, Path) and not _is_source(os.fspath(name)):
                raise UnknownModelError(describe_unknown(os.fspath(name)))
            if source is not None:
                raise ArgumentError(f"{name} has its own weights: name it or {weights}, not both")
            found = cls._from_checkpoint(_locate(name), None)
            return dataclasses.replace(found, alias=_last_part(os.fspath(name)))
        if source is None:
            if name is None:
                raise ArgumentError("name a model or a checkpoint; see: snzoo list")
            return cls._from_zoo(str(name))
        return cls._from_checkpoint(source, None if name is None else str(name))

    @classmethod
    def _from_zoo(cls, name: str) -> Self:
        manifest = load_manifest()
        if name in manifest.models:
            entry = manifest.models[name]
            return cls(**{field.name: getattr(entry, field.name) for field in _FIELDS})
        is_face = ARCHITECTURES[name].is_face
        return cls(
            name=name,
            architecture=name,
            arguments={},
            num_params=None,
            classes=() if is_face else "imagenet-1k",
            preprocessing=FACES if is_face else manifest.preprocessing["imagenet"],
            file=None,
            published=(),
            training=None,
            license=None,
            provenance="An architecture without published weights.",
        )

    @classmethod
    def _from_checkpoint(cls, source: Path, name: str | None) -> Self:
        from snzoo.weights import description_of, read_state_dict

        document = description_of(source)
        if document is None:
            if name is None:
                read_state_dict(source)  # any other file has its own error
                raise CheckpointError(
                    f"{source} does not say which model it is; name it too: "
                    "--model NAME --weights FILE, or NAME --weights FILE for snzoo convert"
                )
            return dataclasses.replace(
                cls._from_zoo(name), recipe=None, weights=source, published=()
            )
        found = parse_description(document, str(source))
        if not _is_zoo_name(found.model):
            raise UnknownModelError(f"{source}: {describe_unknown(found.model)}")
        base = cls._from_zoo(found.model)
        if name is not None and cls._from_zoo(name).architecture != base.architecture:
            raise CheckpointError(f"{source} was made from {found.model}, not from {name}")
        origin = load_manifest().models.get(found.origin or "")
        return dataclasses.replace(
            base,
            arguments=base.arguments | found.arguments,
            classes=found.classes,
            preprocessing=found.preprocessing,
            published=(),
            identification=(),
            provenance=f"Finetuned: {source}",
            license=base.license if origin is None else origin.license,
            recipe=found.recipe,
            weights=source,
            origin=None if origin is None else found.origin,
        )

    def with_norm(self, norm: str, **arguments: Any) -> Self:
        origin = self.origin or (self.name if self.file else None)
        return dataclasses.replace(
            super().with_norm(norm, **arguments), weights=None, origin=origin, alias=None
        )

    @property
    def called(self) -> str:
        """The name of the model in predictions and in APIs."""
        return self.alias or self.name

    @property
    def network(self) -> Architecture:
        """The depth, version and norm of the network.

        Raises:
            UnknownModelError: this version of snzoo does not have the architecture.
        """
        try:
            return ARCHITECTURES[self.architecture]
        except KeyError:
            raise UnknownModelError(
                f"{self.name}: {describe_unknown(self.architecture, ARCHITECTURES)}"
            ) from None

    @property
    def is_face(self) -> bool:
        """Whether the network is known to return embeddings of faces instead of logits."""
        known = ARCHITECTURES.get(self.architecture)
        return known is not None and known.is_face

    def build(self, **options: Any) -> AnyResNet:
        """Return the network with random weights, in training mode, in float32, on the CPU.

        Args:
            options: See :class:`snzoo.models.architectures.NetworkOptions`. They override the
                arguments of the spec.

        Raises:
            UnexpectedArgumentError, ArgumentError: see :func:`snzoo.models.build.build`.
        """
        from snzoo.models.build import build

        options = clean_options(options)
        model = build(self.network, **{"num_classes": self.num_classes, **self.arguments} | options)
        named = options.pop("num_classes", self.num_classes) == self.num_classes
        classes = self.classes if named else ()  # the names of new classes are unknown
        model.spec = dataclasses.replace(self, arguments=self.arguments | options, classes=classes)
        return model

    def load(
        self, *, averaged: bool | None = None, out_indices: Any = None, **options: Any
    ) -> AnyResNet:
        """Return the network with its weights. The file must match the network exactly.

        There are two exceptions: if ``options`` and the file differ in ``num_classes``, ``fc`` is
        new, and if they differ in ``in_chans``, the stem is adapted.

        Args:
            averaged: True loads averaged weights (EMA, SWA), False loads raw weights, and None
                loads the averaged ones if there are any, else the raw ones. With None, a warning
                is logged if the checkpoint has both. Default: None.
            out_indices: The maps of a feature extractor, or None for a classifier. For an
                extractor, the file may have a classifier of any size, or only the tensors that
                the extractor needs.
            options: See :meth:`build`.

        Raises:
            CheckpointError, ChecksumError, DownloadError, CacheError: the weights cannot be
                read, do not match, or do not exist.
            UnexpectedArgumentError, ArgumentError: see :meth:`build`.
        """
        import torch

        from snzoo.nn import harden_gates
        from snzoo.weights import conform_state_dict, fetch_weights, read_state_dict, weights_of

        options = clean_options(options)
        with torch.device("meta"):  # no memory and no random numbers for tensors that are loaded
            wanted = self.build(**options)
        path = weights_of(self.weights) if self.weights else fetch_weights(self, self.layout)
        state = read_state_dict(path, averaged=averaged, mmap=self.weights is None)
        sizes = {name: n for name, n in _sizes(state).items() if name in options}
        if out_indices is not None:
            sizes["num_classes"] = _sizes(state).get("num_classes", 0)
        with torch.device("meta"):
            model = self.build(**options | sizes)
        layout = model.state_dict()
        if out_indices is not None and state.keys() == (own := _keys_needed(model, out_indices)):
            layout = {key: like for key, like in layout.items() if key in own}
        state = conform_state_dict(state, layout, where=path)
        model.load_state_dict(state, strict=len(layout) == len(model.state_dict()), assign=True)
        model.spec = wanted.spec
        if model.conv1.in_channels != wanted.conv1.in_channels:
            model.reset_input(wanted.conv1.in_channels)
        if (self.arguments | options).get("hard_gates"):
            harden_gates(model)
        if out_indices is None and model.num_classes != wanted.num_classes:
            model.reset_classifier(wanted.num_classes)
        return model

    def layout(self) -> dict[str, Tensor]:
        """Return the state dict of the network with tensors on the meta device."""
        import torch

        with torch.device("meta"):
            return dict(self.build().state_dict())


_FIELDS = dataclasses.fields(Entry)


def describe_unknown(name: str, known: Any = None) -> str:
    """Return the message for an unknown name, with the most similar known names.

    Args:
        name: The unknown name.
        known: The known names; default: :func:`zoo_names`.
    """
    near = difflib.get_close_matches(name, known or zoo_names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see: snzoo list"
    return f"no model named {name!r}; {hint}"


def zoo_names() -> list[str]:
    """Return the names of all models of the manifest, then of the bare architectures."""
    return list(dict.fromkeys([*load_manifest().models, *ARCHITECTURES]))


def _is_zoo_name(name: str | os.PathLike[str]) -> bool:
    return isinstance(name, str) and name in zoo_names()


def _is_source(name: str) -> bool:
    # A string with a path separator is taken for a path, so that the error is about a file.
    return name.startswith((HUB, LOCAL)) or os.sep in name or (name != "" and os.path.exists(name))


def _locate(source: str | os.PathLike[str]) -> Path:
    """Return the local path of a checkpoint or folder. A repository is downloaded from the hub."""
    text = os.fspath(source)
    if not text.removeprefix(LOCAL):  # Path("") would be the current folder
        raise ArgumentError("the path of the weights must not be empty")
    if text.startswith(HUB):
        from snzoo.weights.hub import download_folder

        return download_folder(text)
    path = Path(text.removeprefix(LOCAL))
    best = path / "best.safetensors"  # of a run of snzoo train
    return best if best.is_file() and not (path / "config.json").exists() else path


def _last_part(source: str) -> str:
    if source.startswith(HUB):
        source = source.partition("@")[0]
    return Path(source.removeprefix(LOCAL)).name


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the num_classes (0 without ``fc``) and in_chans of a state dict, if known."""
    places = {"num_classes": ("fc.weight", 0), "in_chans": ("conv1.weight", 1)}
    sizes = {
        name: state[key].shape[dim]
        for name, (key, dim) in places.items()
        if key in state and state[key].ndim > dim
    }
    return sizes if any(key.startswith("fc.") for key in state) else {"num_classes": 0, **sizes}


def _keys_needed(model: AnyResNet, out_indices: Any) -> set[str]:
    """Return the keys of the state dict of a feature extractor."""
    from snzoo.models.features import FeatureExtractor

    return set(FeatureExtractor(model, out_indices).state_dict())
