"""How photos are prepared for a network, as data (standard library only)."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from snzoo.errors import ManifestError

Resampling = Literal["pillow-bilinear", "tf1-bilinear", "torch7-bicubic"]
# What each rule does, in the sentence of Preprocessing.describe:
RULES = {
    "pillow-bilinear": "bilinear, antialiased",
    "tf1-bilinear": "bilinear as in TensorFlow 1, not antialiased",
    "torch7-bicubic": "bicubic as in Torch7, not antialiased",
}


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of photos for a network.

    The shorter side is resized to ``resize`` pixels, the center of ``crop`` × ``crop`` pixels is
    kept, and values are normalized to (value − mean) / std.

    The published accuracy of a network holds for the rule by which its authors resized photos:

    - ``"pillow-bilinear"``: Pillow's bilinear filter, which averages all pixels that it leaves out
      (antialiasing), rounded to 8 bits. The longer side is truncated to a whole number of pixels,
      and the offset of the crop is rounded, halves to even. This is torchvision's rule.
    - ``"tf1-bilinear"``: ``tf.image.resize_bilinear`` of TensorFlow 1 in TF-Slim's
      ``vgg_preprocessing`` of 2016. It interpolates between two pixels per axis, at the position
      i · length / resized, and is not antialiased. The factor resize / shorter is rounded to
      float32. Both sides are truncated, so the shorter one may become ``resize`` − 1. The offset
      of the crop is truncated.
    - ``"torch7-bicubic"``: ``image.scale`` of Torch7 in fb.resnet.torch. It is Catmull-Rom's cubic
      (a = −0.5) through four pixels per axis, at the position i · (length − 1) / (resized − 1),
      and is not antialiased. Pixels beyond the border are extrapolated linearly. The longer side
      is truncated, and the offset of the crop is rounded up.

    The last two are computed in float32 and not rounded. Torch7's values may lie beyond 0 and 255.

    Attributes:
        resize: the length of the shorter side after resizing, in pixels.
        crop: the side of the square crop, in pixels.
        channel_order: the order of the channels, also in ``mean`` and ``std``.
        scale: the value of white before the mean is subtracted, 1 or 255.
        mean: the mean of each channel.
        std: the standard deviation of each channel.
        resampling: the rule of the resizing.
    """

    resize: int
    crop: int
    channel_order: Literal["RGB", "BGR"]
    scale: Literal[1, 255]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampling: Resampling = "pillow-bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ManifestError(f"crop {self.crop} must be between 1 and resize {self.resize}")
        if min(self.std) <= 0:
            raise ManifestError(f"std must be positive, got {self.std}")

    def replace(
        self,
        *,
        resize: int | None = None,
        crop: int | None = None,
        resampling: Resampling | None = None,
    ) -> "Preprocessing":
        """Return the same preprocessing with another size or rule.

        Args:
            resize: the new ``resize`` (default: the ratio of ``resize`` to ``crop`` is kept).
            crop: the new ``crop`` (default: unchanged).
            resampling: the new ``resampling`` (default: unchanged).
        """
        crop = self.crop if crop is None else crop
        ratio = self.resize / self.crop
        resize = round(crop * ratio) if resize is None else resize
        rule = resampling or self.resampling
        return dataclasses.replace(self, resize=resize, crop=crop, resampling=rule)

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
        rule = RULES[self.resampling]
        return (
            f"Preprocessing: the shorter side to {self.resize} pixels ({rule}), "
            f"the center {self.crop}×{self.crop} pixels, {self.channel_order} from 0 to "
            f"{self.scale}, minus {list(self.mean)}, divided by {list(self.std)}."
        )


HALF = (0.5, 0.5, 0.5)
# Of aligned faces, for the architectures of face networks.
FACES = Preprocessing(resize=112, crop=112, channel_order="RGB", scale=1, mean=HALF, std=HALF)
