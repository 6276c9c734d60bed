"""How photos are prepared for a network, as data (standard library only)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from snzoo.errors import ManifestError


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of photos for a network.

    The shorter side is resized to ``resize`` pixels, the center of ``crop`` × ``crop`` pixels is
    kept, and values are normalized to (value − mean) / std.

    Attributes:
        resize: the length of the shorter side after resizing, in pixels.
        crop: the side of the square crop, in pixels.
        channel_order: the order of the channels, also in ``mean`` and ``std``.
        scale: the value of white before the mean is subtracted, 1 or 255.
        mean: the mean of each channel.
        std: the standard deviation of each channel.
    """

    resize: int
    crop: int
    channel_order: Literal["RGB", "BGR"]
    scale: Literal[1, 255]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ManifestError(f"crop {self.crop} must be between 1 and resize {self.resize}")
        if min(self.std) <= 0:
            raise ManifestError(f"std must be positive, got {self.std}")

    def replace(self, *, resize: int | None = None, crop: int | None = None) -> "Preprocessing":
        """Return the same preprocessing with another size.

        Args:
            resize: the new ``resize`` (default: the ratio of ``resize`` to ``crop`` is kept).
            crop: the new ``crop`` (default: unchanged).
        """
        crop = self.crop if crop is None else crop
        ratio = self.resize / self.crop
        resize = round(crop * ratio) if resize is None else resize
        return dataclasses.replace(self, resize=resize, crop=crop)

    def in_rgb(self) -> "Preprocessing":
        """Return the same preprocessing for RGB values from 0 to 1.

        Mean and std are converted too: (scale · v − mean) / std is
        (v − mean / scale) / (std / scale). Weights for BGR need reversed input channels.
        """
        step = 1 if self.channel_order == "RGB" else -1
        mean: Any = tuple(value / self.scale for value in self.mean[::step])
        std: Any = tuple(value / self.scale for value in self.std[::step])
        return dataclasses.replace(self, channel_order="RGB", scale=1, mean=mean, std=std)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """Return the steps of the preprocessing as a sentence."""
        return (
            f"Preprocessing: the shorter side to {self.resize} pixels (bilinear, antialiased), "
            f"the center {self.crop}×{self.crop} pixels, {self.channel_order} from 0 to "
            f"{self.scale}, minus {list(self.mean)}, divided by {list(self.std)}."
        )
