"""The maps of several stages of a network, for detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from snzoo.errors import ArgumentError
from snzoo.models.backbone import STAGES, Backbone, Level
from snzoo.models.face_resnet import FaceResNet
from snzoo.models.resnet import ResNet


class FeatureInfo:
    """A description of the maps that a feature extractor returns, with timm's methods.

    Attributes:
        info: All five maps of the network, as ``ResNet.feature_info``.
        out_indices: The indices of the returned maps, in increasing order.
    """

    def __init__(self, info: Sequence[Level], out_indices: Sequence[int]) -> None:
        self.info = tuple(info)
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return ``info[i][key]`` for one index, several, or (None) the returned maps."""
        if isinstance(idx, int):
            return self.info[idx][key]  # type: ignore[literal-required]
        chosen = self.out_indices if idx is None else idx
        return [self.info[i][key] for i in chosen]  # type: ignore[literal-required]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """Return the descriptions themselves, of the maps as in :meth:`get`."""
        names = keys or ("num_chs", "reduction", "module")
        chosen = [idx] if isinstance(idx, int) else self.out_indices if idx is None else idx
        dicts = [{"index": i} | {name: self.get(name, i) for name in names} for i in chosen]
        return dicts[0] if isinstance(idx, int) else dicts

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the number of channels of each returned map (or of the maps ``idx``)."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the stride of each returned map, in pixels of the input."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the name of the module that computes each returned map."""
        return self.get("module", idx)

    def __getitem__(self, index: int) -> Level:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class FeatureExtractor(Backbone):
    """The maps ``out_indices`` of a network.

    It takes over the modules of ``network`` that the maps need, under their names, and drops the
    rest. So the keys of its state dict are those of the network, and training one trains the
    other.

    Args:
        network: What ``snzoo.create_model`` returned.
        out_indices: Indices from 0 (the stem, before the max pool) to 4 (the last stage), in
            increasing order; negative ones count from the end, and a number n means the last n
            maps. Default: the four stages.

    Attributes:
        feature_info: A :class:`FeatureInfo`: ``channels()``, ``reduction()``, ``module_name()``.

    Raises:
        ArgumentError: ``out_indices`` are not such indices.
    """

    feature_info: FeatureInfo

    def __init__(
        self, network: ResNet | FaceResNet, out_indices: Sequence[int] | int = (1, 2, 3, 4)
    ) -> None:
        super().__init__(network.prefix, pool=network.maxpool, activation=network.activation)
        indices = take_indices(out_indices)
        self.feature_info = FeatureInfo(network.feature_info, indices)
        for name in network.module_names(range(1 + indices[-1])):
            self.add_module(name, network.get_submodule(name))
        self.spec = network.spec
        self.frozen_stages = network.frozen_stages
        self.frozen_statistics = network.frozen_statistics
        self.training = network.training

    @property
    def out_indices(self) -> tuple[int, ...]:
        return self.feature_info.out_indices

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map (N, channels, ⌈H/stride⌉, ⌈W/stride⌉) for each index.

        With ``stem_pool="ceil"``, sides of the stem's map that are odd are rounded down.

        Args:
            x: Normalized images (N, in_chans, H, W).
        """
        return self.forward_levels(x, self.out_indices)


def take_indices(out_indices: Sequence[int] | int) -> list[int]:
    """Return the indices of maps as increasing numbers from 0 to 4.

    Raises:
        ArgumentError: they are not, or name no map.
    """
    count = 1 + STAGES
    if isinstance(out_indices, int) and not isinstance(out_indices, bool):
        given = list(range(count - out_indices, count)) if 1 <= out_indices <= count else []
    else:
        given = list(out_indices) if isinstance(out_indices, Sequence) else []
        given = [i + count if isinstance(i, int) and i < 0 else i for i in given]
    if not given or given != [i for i in range(count) if i in given]:
        raise ArgumentError(
            f"out_indices must be increasing, from 0 (the stem) to {STAGES}, or negative from "
            f"the end, got {out_indices!r}"
        )
    return given
