"""Decode photos to 8-bit RGB, as Pillow's ``open`` and ``convert("RGB")`` do.

If simplejpeg is installed (extra ``[fast]``), it decodes JPEG files to the same bits. Pillow
decodes all other formats, and each JPEG file that simplejpeg does not accept.
"""

from __future__ import annotations

import importlib.util
import io
import os
from importlib.metadata import version
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from snzoo.data.sources import read_file, unreadable
from snzoo.errors import DataError, UnexpectedArgumentError

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
# The content of an image file, its path, a PIL image of any mode, or its pixels:
Photo = bytes | str | os.PathLike[str] | Image.Image | Pixels

HAS_SIMPLEJPEG = importlib.util.find_spec("simplejpeg") is not None
LARGEST_JPEG = 1 << 26  # pixels; Pillow decodes larger files, and refuses bombs
# EXIF orientation → the operation that turns the photo upright (1 is upright already):
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A JPEG file without any of these bytes has no orientation. Pillow reads it from EXIF and from XMP.
ORIENTATION_MARKS = (b"Exif", b"tiff:Orientation")


def decode(
    photo: Photo, *, name: str | None = None, shrink_to: int | None = None, upright: bool = False
) -> Image.Image | Pixels:
    """Return the pixels of a photo, as a PIL image in RGB or as a uint8 array (H, W, 3).

    Args:
        photo: the content of an image file, a path, a PIL image, or a uint8 array (H, W, 3).
        name: the name of the photo in errors (default: its path, or "an image").
        shrink_to: scale a JPEG file down while decoding, to at least this many pixels per side,
            with a fast transform and fast upsampling. The result is approximate.
        upright: turn the photo according to its EXIF orientation, like
            ``ImageOps.exif_transpose``. An array has no orientation. The reference evaluation does
            not turn photos.

    Raises:
        DataError: the photo cannot be read, is not an image, is damaged or cut short, does not
            have 8 bits per channel, or is so large that it may be a decompression bomb.
        UnexpectedArgumentError: ``photo`` has another type.
    """
    if isinstance(photo, (str, os.PathLike)):
        name = name or os.fspath(photo)
        photo = read_file(photo)
    name = name or "an image"
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or not photo.size:
            got = f"{photo.dtype} {photo.shape}"
            raise unreadable(name, f"expected a uint8 array (height, width, 3), got {got}")
        return photo
    if isinstance(photo, Image.Image):
        return _convert(photo, name, upright)
    if not isinstance(photo, bytes):
        raise UnexpectedArgumentError(
            "a photo is a path, the content of an image file (bytes), a PIL image or a uint8 "
            f"array (height, width, 3), got {type(photo).__name__}"
        )
    pixels = _decode_jpeg(photo, shrink_to) if HAS_SIMPLEJPEG else None
    if pixels is None:
        return load_image(photo, name=name, shrink_to=shrink_to, upright=upright)
    if upright and any(mark in photo for mark in ORIENTATION_MARKS):
        with Image.open(io.BytesIO(photo)) as image:  # reads the header only
            turn = _find_turn(image)
        if turn is not None:
            return Image.fromarray(pixels).transpose(turn)
    return pixels


def load_image(
    content: bytes,
    *,
    name: str = "an image",
    shrink_to: int | None = None,
    upright: bool = False,
) -> Image.Image:
    """Decode the content of an image file with Pillow, without simplejpeg; see :func:`decode`.

    Raises:
        DataError: see :func:`decode`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if shrink_to:
                image.draft(None, (shrink_to, shrink_to))
            return _convert(image, name, upright)
    except DataError:
        raise
    except Exception as error:  # Pillow raises exceptions of many types for damaged files
        reason = explain(error, content, unknown="not an image that Pillow knows")
        raise unreadable(name, reason) from None


def explain(error: Exception, content: bytes, *, unknown: str) -> str | Exception:
    """Return why Pillow did not open the content of an image file.

    Args:
        error: the error of Pillow.
        content: the content of the file.
        unknown: the reason if the format is unknown.
    """
    if not content:
        return "the file is empty"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"more than {most:,} pixels, which may be a decompression bomb; make it smaller"
    return unknown if isinstance(error, UnidentifiedImageError) else error


def _convert(image: Image.Image, name: str, upright: bool) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16 or 32 bits to white
        raise unreadable(name, f"pixels of mode {image.mode}, not 8 bits; convert it first")
    try:
        converted = image.convert("RGB")
    except Exception as error:  # Pillow raises exceptions of many types for damaged files
        raise unreadable(name, error) from None
    turn = _find_turn(image) if upright else None
    return converted if turn is None else converted.transpose(turn)


def _find_turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data
        return None


def _decode_jpeg(content: bytes, shrink_to: int | None) -> Pixels | None:
    """Decode a JPEG file with simplejpeg, or return None if Pillow must decode the content.

    Pillow must decode other formats, CMYK, damaged files, and more than ``LARGEST_JPEG`` pixels.
    """
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
    """Return the name and version of the JPEG decoder, which evaluations record."""
    package = "simplejpeg" if HAS_SIMPLEJPEG else "pillow"
    return f"{package} {version(package)}"
