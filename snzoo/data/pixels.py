"""An image file → the pixels that the reference transform gives, to the last bit.

The reference: Pillow open → convert("RGB"), no EXIF rotation → bilinear antialiased
resize of the shorter side → centre crop → normalisation.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from stat import S_ISREG

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from snzoo.errors import DataError
from snzoo.manifest import Preprocessing

LARGEST = 1 << 28  # pixels; far beyond any photo, 0.8 GB while it is resized


def load_image(source: str | Path | bytes, *, name: str | None = None) -> Image.Image:
    """Decode a file (or its content) completely, as 8-bit RGB; ``name`` it in errors.

    Raises:
        DataError: it can't be read, is no image, is damaged or cut short, or is so
            large that it looks like a decompression bomb.
    """
    name = _name(source, name)
    try:
        if not isinstance(source, bytes) and not S_ISREG(os.stat(source).st_mode):
            raise ValueError("not a regular file")  # a pipe would be waited for without end
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode.startswith(("I", "F")):  # 16 or 32 bits: Pillow clips them to white
                raise ValueError(f"pixels of mode {image.mode}, not 8 bits; convert it first")
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image that Pillow knows"
        raise DataError(f"can't read {name}: {reason}") from None


def _name(source: str | Path | bytes, name: str | None) -> str:
    return name or ("an image" if isinstance(source, bytes) else str(source))


def resize_and_crop(image: Image.Image, *, resize: int, crop: int) -> Image.Image:
    """Shorter side → ``resize`` pixels, then the central ``crop`` × ``crop`` of them.

    Raises:
        DataError: the image is so narrow that resizing it would fill the memory.
    """
    width, height = image.size
    short, long = sorted(image.size)
    long = int(resize * long / short)  # truncated, as torchvision does
    if resize * long > LARGEST:
        raise DataError(f"{width}x{height} pixels would grow to {resize}x{long}; crop it first")
    size = (long, resize) if width > height else (resize, long)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - crop) / 2.0) for side in size)  # halves go to the even pixel
    return image.crop((left, top, left + crop, top + crop))


def load_pixels(
    source: str | Path | bytes, preprocessing: Preprocessing, *, name: str | None = None
) -> Tensor:
    """Image file → uint8 RGB (3, crop, crop), still without normalisation.

    Raises:
        DataError: see :func:`load_image` and :func:`resize_and_crop`.
    """
    image = load_image(source, name=name)
    try:
        image = resize_and_crop(image, resize=preprocessing.resize, crop=preprocessing.crop)
    except DataError as error:
        raise DataError(f"can't use {_name(source, name)}: {error}") from None
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(preprocessing.crop, preprocessing.crop, 3).permute(2, 0, 1).contiguous()


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 RGB (N, 3, H, W) → the float32 input of a network, on the same device."""
    x = pixels.flip(1) if preprocessing.channel_order == "BGR" else pixels
    x = x.to(torch.float32)
    if preprocessing.scale == 1:
        x = x / 255
    mean, std = (
        torch.tensor(values, device=x.device).view(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (x - mean) / std
