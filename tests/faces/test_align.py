"""Alignment against scikit-image's transforms, OpenCV's pixels and a plain loop."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from snzoo.errors import ArgumentError, DataError, UnexpectedArgumentError
from snzoo.faces import align, similarity_transform
from snzoo.faces.align import POSITIONS

POINTS = np.array([(21.5, 18.25), (52.0, 12.5), (39.0, 33.0), (30.25, 50.5), (55.5, 46.0)])


def photo(height=60, width=80):
    """Steep gradients with jumps."""
    y, x = np.mgrid[:height, :width]
    channels = (x * 37 + y * 11, x * x + 3 * y, 255 - x * 3 + y)
    return np.stack([channel % 256 for channel in channels], -1).astype(np.uint8)


# The matrices of scikit-image 0.26's SimilarityTransform. The profile's eyes are 4 pixels apart.
@pytest.mark.parametrize(
    "points, expected",
    [
        (
            [(210.5, 330.25), (305.0, 318.75), (262.0, 385.5), (228.25, 441.0), (311.5, 430.5)],
            [
                [0.35967931178014634, -0.039236862818386016, -23.774262582110794],
                [0.03923686281838603, 0.3596793117801464, -75.5459251600956],
            ],
        ),
        (
            [(300.0, 200.0), (205.0, 210.0), (251.0, 150.0), (290.0, 90.0), (212.0, 96.0)],
            [
                [-0.3654238254833911, 0.014066607833415954, 145.86805660287553],
                [-0.01406660783341596, -0.36542382548339114, 129.9611732930094],
            ],
        ),
        (
            [(120.0, 100.0), (124.0, 101.0), (96.0, 130.0), (112.0, 160.0), (114.0, 161.0)],
            [
                [0.6249874396848842, 0.1006864254062039, -27.851928045297882],
                [-0.10068642540620373, 0.6249874396848842, 1.8001212210733541],
            ],
        ),
        (
            [(10.0, 10.0), (20.0, 20.0), (30.0, 30.0), (45.0, 45.0), (50.0, 50.0)],
            [
                [0.7042934374999997, -0.4752785267857144, 48.92669776785716],
                [0.47527852678571414, 0.7042934374999997, 35.33404910714287],
            ],
        ),
    ],
    ids=["frontal", "upside down", "profile", "collinear"],
)
def test_the_transform_is_that_of_scikit_image(points, expected):
    matrix = similarity_transform(points)
    assert matrix.shape == (2, 3) and matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-11)


def test_the_size_scales_the_positions():
    large, small = similarity_transform(POINTS, size=224), similarity_transform(POINTS)
    np.testing.assert_allclose(large, 2 * small, rtol=1e-14)
    assert align(photo(), POINTS, size=30).size == (30, 30)


def test_the_landmarks_of_300_w_are_reduced():
    landmarks = np.random.default_rng(0).uniform(0, 100, (68, 2))  # the others are not read
    landmarks[[30, 48, 54]] = POINTS[2:]
    corner = np.array([3.0, 1.0])
    landmarks[[36, 42]], landmarks[[39, 45]] = POINTS[:2] - corner, POINTS[:2] + corner
    expected = similarity_transform(POINTS)
    np.testing.assert_allclose(similarity_transform(landmarks), expected, rtol=1e-12)


def bilinear(pixels, x, y):
    """One sample of a photo with black around it, by the definition."""
    total = 0.0
    for j in (math.floor(y), math.floor(y) + 1):
        for i in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < pixels.shape[1] and 0 <= j < pixels.shape[0]:
                total = total + (1 - abs(x - i)) * (1 - abs(y - j)) * pixels[j, i]
    return np.zeros(3) + total


def test_pixels_are_those_of_a_plain_loop():
    pixels = photo()
    aligned = np.asarray(align(pixels, POINTS)).astype(float)
    (a, b, s), (c, d, t) = similarity_transform(POINTS)
    inverse, outside = np.linalg.inv([[a, b], [c, d]]), 0
    for v in range(112):
        for u in range(112):
            x, y = inverse @ (u - s, v - t)
            exact = bilinear(pixels, x, y)
            assert np.abs(aligned[v, u] - exact).max() <= 0.5 + 1e-9
            outside += not exact.any()
    assert 1000 < outside < 6000  # the face is near the edge


def test_a_ramp_stays_a_ramp():
    """The center of the first pixel is (0, 0): another convention would shift by half a pixel."""
    y, x = np.mgrid[:120, :120]
    ramp = np.stack([2 * x, 2 * y, x + y], -1).astype(np.uint8)
    points = POSITIONS / 2 + (20.25, 30.5)
    aligned = np.asarray(align(ramp, points)).astype(float)
    v, u = np.mgrid[:112, :112]
    x, y = u / 2 + 20.25, v / 2 + 30.5
    assert np.abs(aligned - np.stack([2 * x, 2 * y, x + y], -1)).max() <= 0.5 + 1e-9


def test_an_aligned_photo_is_unchanged():
    pixels = photo(112, 112)
    assert (np.asarray(align(pixels, POSITIONS)) == pixels).all()


# Every 17th pixel from (5, 3) of cv2.warpAffine(photo(), similarity_transform(POINTS), (112, 112))
OPENCV_5 = """
0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0
0,0,0 29,53,251 44,123,206 244,82,161 187,137,116 191,78,61 0,0,0
0,0,0 23,126,56 155,160,212 98,44,167 231,220,122 214,55,77 198,225,32
0,0,0 65,212,8 54,170,219 208,18,174 224,193,129 208,147,84 0,0,0
0,0,0 90,55,14 119,85,225 235,88,180 218,112,135 202,25,90 0,0,0
0,0,0 0,0,0 0,0,0 0,0,0 204,136,136 196,167,97 0,0,0
"""
OPENCV_4_10 = """
0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0 0,0,0
0,0,0 29,53,251 45,123,206 245,82,161 188,138,116 194,80,62 0,0,0
0,0,0 24,126,58 151,157,212 95,45,167 231,221,122 215,54,77 198,224,32
0,0,0 65,212,8 55,170,219 209,17,174 224,194,129 208,147,84 0,0,0
0,0,0 89,54,15 115,86,225 235,86,180 219,111,135 203,24,90 0,0,0
0,0,0 0,0,0 0,0,0 0,0,0 205,137,137 196,166,97 0,0,0
"""


# OpenCV 4.10 rounds positions to 1/32 pixel: an error of up to 1/64 per axis, where neighbors
# differ by up to 255. OpenCV 5 does not; of its whole image, 0.005 % of the values differ, by 1.
@pytest.mark.parametrize("recorded, most", [(OPENCV_5, 1), (OPENCV_4_10, 255 / 32 + 1)])
def test_pixels_are_nearly_those_of_opencv(recorded, most):
    expected = np.array([pixel.split(",") for pixel in recorded.split()], int).reshape(7, 7, 3)
    aligned = np.asarray(align(photo(), POINTS)).astype(int)[5::17, 3::17]
    assert np.abs(aligned - expected).max() <= most


@pytest.mark.parametrize(
    "points, message",
    [
        ([(30.0, 40.0)] * 5, "lie within one pixel"),
        (POINTS / 100, "not fractions of a side"),
        (POINTS[[1, 0, 2, 4, 3]], "fit a mirrored face"),  # of the person, not of the image
        (POINTS[:, ::-1], r"as \(x, y\)"),
        (POINTS * [(1, np.nan)], "not finite"),
        (POINTS * [(1, np.inf)], "not finite"),
        (POINTS * 1e200, "or huge"),
        (POINTS[:4], r"\(5, 2\) or \(68, 2\), got \(4, 2\)"),
        (POINTS.ravel(), r"got \(10,\)"),
        ([["a", "b"]] * 5, "must be numbers"),
        ([(1, 2), (3,)], "must be numbers"),
    ],
)
def test_wrong_landmarks_are_refused(points, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        align(photo(), points)
    assert "\n" not in str(caught.value)


def test_wrong_sizes_are_refused():
    with pytest.raises(ArgumentError, match="size must be a whole number from 1, got 0"):
        align(photo(), POINTS, size=0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(photo()).convert(mode)
    aligned = align(image, POINTS)
    assert aligned.mode == "RGB"
    expected = align(np.asarray(image.convert("RGB")), POINTS)
    assert aligned.tobytes() == expected.tobytes()


@pytest.mark.parametrize("upright", [True, False])
def test_landmarks_are_positions_in_the_photo_as_it_is_turned(tmp_path, upright):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    stored = Image.fromarray(photo(80, 60))
    stored.save(tmp_path / "turned.png", exif=exif)
    aligned = align(tmp_path / "turned.png", POINTS, upright=upright)
    seen = stored.transpose(Image.Transpose.ROTATE_270) if upright else stored
    assert aligned.tobytes() == align(np.asarray(seen), POINTS).tobytes()


def test_paths_and_the_content_of_files_are_read(tmp_path):
    content = io.BytesIO()
    Image.fromarray(photo()).save(content, "PNG")
    (tmp_path / "face.png").write_bytes(content.getvalue())
    expected = align(photo(), POINTS).tobytes()
    for image in (tmp_path / "face.png", str(tmp_path / "face.png"), content.getvalue()):
        assert align(image, POINTS).tobytes() == expected
    (tmp_path / "face.png").write_bytes(content.getvalue()[:100])
    with pytest.raises(DataError, match=r"face\.png"):
        align(tmp_path / "face.png", POINTS)
    with pytest.raises(UnexpectedArgumentError, match="a photo is a path"):
        align(3, POINTS)
