"""The content of an image file → 8-bit RGB.

The reference is Pillow: open → convert("RGB"), no EXIF rotation. Where simplejpeg is
installed (extra ``[fast]``) it decodes JPEG, to the same bits, and leaves to Pillow
whatever it hesitates over.
"""

from __future__ import annotations

import importlib.util
import io
from importlib.metadata import version
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from snzoo.errors import DataError

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB

HAS_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None
LARGEST_JPEG = 1 << 26  # pixels; above, Pillow judges whether it is a decompression bomb


def decode(
    content: bytes, *, name: str = "an image", shrink_to: int | None = None
) -> Image.Image | Pixels:
    """The pixels of :func:`load_image`, as an array where simplejpeg made them.

    Args:
        shrink_to: scale JPEG down while it is decoded, to no less than so many pixels a
            side, with a fast transform and upsampling: an approximation.

    Raises:
        DataError: see :func:`load_image`.
    """
    pixels = _decode_jpeg(content, shrink_to) if HAS_SIMPLEJPEG else None
    return load_image(content, name=name, shrink_to=shrink_to) if pixels is None else pixels


def load_image(
    content: bytes, *, name: str = "an image", shrink_to: int | None = None
) -> Image.Image:
    """Decode completely with Pillow, the reference; ``name`` the image in errors.

    Raises:
        DataError: it is no image, is damaged or cut short, or is so large that it looks
            like a decompression bomb.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode.startswith(("I", "F")):  # 16 or 32 bits: Pillow clips them to white
                raise ValueError(f"pixels of mode {image.mode}, not 8 bits; convert it first")
            if shrink_to:
                image.draft(None, (shrink_to, shrink_to))
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        reason = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image that Pillow knows"
        raise DataError(f"can't read {name}: {reason}") from None


def _decode_jpeg(content: bytes, shrink_to: int | None) -> Pixels | None:
    """None where Pillow has to decide: no JPEG, CMYK, damaged in any way, or very large."""
    import simplejpeg

    side, fast = shrink_to or 0, shrink_to is not None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
        if colors not in ("YCbCr", "Gray", "RGB") or height * width > LARGEST_JPEG:
            return None
        pixels = simplejpeg.decode_jpeg(
            content, "RGB", fastdct=fast, fastupsample=fast, min_height=side, min_width=side
        )
    except ValueError:
        return None
    return cast(Pixels, pixels)


def decoder() -> str:
    """Name and version of what decodes JPEG, for the record of an evaluation."""
    package = "simplejpeg" if HAS_SIMPLEJPEG else "pillow"
    return f"{package} {version(package)}"
