"""Align faces by five landmarks: a similarity transform to fixed positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from snzoo.data.decode import Photo, Pixels, decode
from snzoo.errors import ArgumentError

# Where insightface puts the landmarks in a photo of 112×112 pixels: the eye at the left of the
# image, the other eye, the tip of the nose, and the left and the right corner of the mouth.
POSITIONS = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
LARGEST = 1e9  # pixels from the corner of a photo
ORDER = "the left eye of the image, its right eye, the nose, the left and right corner of the mouth"


def align(image: Photo, points: ArrayLike, *, size: int = 112, upright: bool = True) -> Image.Image:
    """Return the aligned face of a photo, as face networks expect it.

    The photo is resampled bilinearly without antialiasing, and pixels outside of it are black, as
    in insightface's ``norm_crop``.

    Args:
        image: a path, the content of an image file (bytes), a PIL image, or an RGB array (H, W, 3)
            of uint8.
        points: the landmarks of the face; see :func:`similarity_transform`.
        size: the side of the result, in pixels; the positions are scaled by size / 112.
        upright: turn the photo as its EXIF orientation says. The landmarks are then positions in
            the turned photo.

    Returns:
        An RGB image of ``size`` × ``size`` pixels.

    Raises:
        DataError: the photo cannot be read.
        UnexpectedArgumentError: ``image`` has another type.
        ArgumentError: see :func:`similarity_transform`.
    """
    matrix = similarity_transform(points, size=size)
    pixels = np.asarray(decode(image, upright=upright))
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    to_photo = np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]
    x, y = np.einsum("ij,jyx->iyx", to_photo, np.stack([x, y, np.ones_like(x)]))
    return Image.fromarray(_sample(pixels, x, y))


def similarity_transform(points: ArrayLike, *, size: int = 112) -> NDArray[np.float64]:
    """Return the matrix (2, 3) that maps landmarks to the positions in an aligned photo.

    The transform turns, scales and shifts. It has the least squared distance to the positions
    (Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    1991).

    Args:
        points: the pixel positions (x, y) of five landmarks (5, 2): the left eye of the image, its
            right eye, the nose, the left and the right corner of the mouth. The center of the
            first pixel is (0, 0). The 68 landmarks of 300-W (68, 2), which dlib returns, are
            reduced to these five.
        size: the side of the aligned photo, in pixels.

    Raises:
        ArgumentError: the landmarks have another shape, are not finite, lie within one pixel, or
            are those of a mirrored face, because their order is wrong; or ``size`` is not positive.
    """
    if size < 1:
        raise ArgumentError(f"size must be a whole number from 1, got {size!r}")
    source = _as_complex(_five_points(points))
    target = _as_complex(POSITIONS * (size / 112))
    # With x + iy for a point, a similarity is z·p + t, and z a plain regression coefficient.
    centered, aim = source - source.mean(), target - target.mean()
    spread = np.vdot(centered, centered).real
    turned, mirrored = np.vdot(centered, aim), np.sum(centered * aim)
    if spread < 1:
        raise ArgumentError(
            "the landmarks lie within one pixel; give positions in pixels, not fractions of a side"
        )
    # A profile, whose landmarks are nearly on a line, fits a mirrored face about equally well.
    if abs(mirrored) >= 2 * abs(turned):
        raise ArgumentError(f"the landmarks fit a mirrored face; their order is {ORDER}, as (x, y)")
    z = turned / spread
    t = target.mean() - z * source.mean()
    return np.array([(z.real, -z.imag, t.real), (z.imag, z.real, t.imag)])


def _five_points(points: ArrayLike) -> NDArray[np.float64]:
    try:
        values = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"the landmarks must be numbers (5, 2): {ORDER}") from None
    if values.shape == (68, 2):
        eyes = values[[36, 42]] / 2 + values[[39, 45]] / 2
        values = np.vstack([eyes, values[[30, 48, 54]]])
    if values.shape != (5, 2):
        raise ArgumentError(f"the landmarks must be of shape (5, 2) or (68, 2), got {values.shape}")
    if not (np.abs(values) < LARGEST).all():  # NaN is not smaller either
        raise ArgumentError("the landmarks must be positions in pixels; one is not finite or huge")
    return values


def _as_complex(points: NDArray[np.float64]) -> NDArray[np.complex128]:
    values: NDArray[np.complex128] = points[:, 0] + 1j * points[:, 1]
    return values


def _sample(pixels: Pixels, x: NDArray[np.float64], y: NDArray[np.float64]) -> Pixels:
    """Return bilinear samples of ``pixels`` (H, W, 3) at ``x`` and ``y``, black outside."""
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, bottom = (x - left)[..., None], (y - top)[..., None]  # weights of these neighbors
    upper = _read(pixels, left, top) * (1 - right) + _read(pixels, left + 1, top) * right
    lower = _read(pixels, left, top + 1) * (1 - right) + _read(pixels, left + 1, top + 1) * right
    return np.rint(upper * (1 - bottom) + lower * bottom).astype(np.uint8)


def _read(pixels: Pixels, x: NDArray[np.int64], y: NDArray[np.int64]) -> Pixels:
    height, width = pixels.shape[:2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = pixels[y.clip(0, height - 1), x.clip(0, width - 1)]
    return np.where(inside[..., None], found, np.uint8(0))
