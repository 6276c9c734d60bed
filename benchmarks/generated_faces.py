"""Draw faces of people who do not exist, so that no person has rights in them.

A person is a set of numbers: shapes, distances and colors of head, hair, eyes, brows, nose, mouth
and ears. A photo adds its own: pose, expression, light, background, blur, noise, and what hides a
part of the face. The light changes the colors more than people differ in them.

    python benchmarks/generated_faces.py FOLDER --people 500 --photos 20 --seed 0

writes FOLDER/00000/000.jpg and so on: a folder for each person, photos of 112×112 pixels. A photo
depends on the seed and on its two numbers alone. Equal versions of NumPy and Pillow write equal
files, except that processors may differ in the last bit of a sine.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from face_drawing import DRAWN, SIZE, draw_person, rgb
from PIL import Image, ImageDraw, ImageFilter

Ranges = dict[str, tuple[float, float]]

# The lowest and the highest value of each number; it is uniform in between. Lengths are in units.
PERSON: Ranges = {
    "head_width": (0.76, 1.0),  # the half of it, as of all widths
    "forehead": (1.15, 1.4),
    "chin": (0.92, 1.2),
    "jaw": (0.0, 0.45),  # how much the head narrows toward the chin
    "squareness": (1.9, 2.7),  # the exponent of the superellipse
    "skin": (0, 1),  # from light to dark
    "skin_red": (-12, 12),
    "hair": (0, 1),
    "hair_style": (0.5, 5),
    "hair_line": (0.62, 1.0),  # its height above the origin
    "hair_volume": (0.03, 0.26),
    "hair_length": (-1.2, 1.4),  # how far it hangs down beside the head
    "parting": (-0.6, 0.6),
    "eye_distance": (0.36, 0.52),
    "eye_height": (0.26, 0.44),
    "eye_width": (0.13, 0.2),
    "eye_open": (0.35, 0.65),  # of the width
    "eye_tilt": (-0.25, 0.25),
    "iris": (0, 1),
    "iris_size": (0.08, 0.11),
    "brow_height": (0.16, 0.3),  # above the eye
    "brow_thick": (0.015, 0.05),
    "brow_width": (0.15, 0.26),
    "brow_tilt": (-0.3, 0.3),
    "brow_arch": (0.0, 0.09),
    "nose_width": (0.1, 0.24),
    "nose_length": (0.1, 0.32),
    "nose_bridge": (0.02, 0.09),
    "mouth_width": (0.22, 0.42),
    "mouth_height": (0.54, 0.72),  # below the origin
    "upper_lip": (0.02, 0.085),
    "lower_lip": (0.03, 0.11),
    "lip_red": (0.15, 0.8),
    "ear_size": (0.14, 0.28),
    "ear_out": (-0.02, 0.12),
    "beard": (-2.5, 1),  # none if negative, as below
    "mustache": (-2.5, 1),
    "glasses": (-6, 1),
    "mole": (-1, 1),
    "mole_x": (-0.6, 0.6),
    "mole_y": (0, 0.8),
}
PHOTO: Ranges = {
    "yaw": (-0.4, 0.4),  # radians
    "pitch": (-0.2, 0.2),
    "roll": (-0.16, 0.16),
    "zoom": (0.9, 1.1),
    "shift_x": (-0.08, 0.08),
    "shift_y": (-0.08, 0.08),
    "smile": (-0.04, 0.1),
    "mouth_open": (-0.15, 0.12),
    "lids": (0, 0.5),  # how much of the eyes they close
    "brow_raise": (-0.03, 0.06),
    "gaze": (-0.05, 0.05),
    "exposure": (-0.8, 0.4),  # stops
    "contrast": (0.65, 1.15),
    "warmth": (-0.22, 0.22),
    "tint": (-0.1, 0.1),
    "gradient": (0, 0.55),
    "light_from": (0, 2 * np.pi),
    "blur": (-0.6, 0.9),  # pixels
    "noise": (0, 14),
    "hidden": (0, 12),
    "hidden_x": (-0.9, 0.9),
    "hidden_y": (-0.9, 0.9),
    "quality": (55, 95),
}


def draw_photo(person: int, photo: int, *, seed: int = 0) -> bytes:
    """Return the JPEG file of a photo of a person, 112×112 pixels in RGB."""
    numbers = sample_numbers(PERSON, np.random.default_rng([seed, person]))
    rng = np.random.default_rng([seed, person, 1 + photo])  # [seed, person, 0] is the one above
    taken = sample_numbers(PHOTO, rng)
    image = _draw_background(rng)
    draw_person(image, numbers, taken, colors=rng.uniform(20, 235, (2, 3)))
    image = _expose(image.reduce(DRAWN), taken, rng)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=int(taken.quality))
    return content.getvalue()


def sample_numbers(ranges: Ranges, rng: np.random.Generator) -> SimpleNamespace:
    """Return a random value for each of the names."""
    low, high = np.array(list(ranges.values())).T
    return SimpleNamespace(**dict(zip(ranges, rng.uniform(low, high).tolist(), strict=True)))


def _draw_background(rng: np.random.Generator) -> Image.Image:
    """Return a gradient between four random colors, with a few shapes."""
    corners = (rng.uniform(0, 256, (2, 2, 1)) + rng.uniform(0, 256, (2, 2, 3))) / 2
    side = SIZE * DRAWN
    image = Image.fromarray(corners.astype(np.uint8)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 5))):
        corner, size = rng.uniform(-0.2, 1, 2) * side, rng.uniform(0.1, 0.5, 2) * side
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([*corner, *(corner + size)], fill=rgb(rng.uniform(0, 255, 3)))
    return image


def _expose(image: Image.Image, photo: SimpleNamespace, rng: np.random.Generator) -> Image.Image:
    """Return the image with the blur, the light and the noise of a photo."""
    if photo.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(photo.blur))
    across = np.linspace(-1, 1, SIZE)
    x, y = np.cos(photo.light_from) * across, np.sin(photo.light_from) * across
    light = 2**photo.exposure * (1 + photo.gradient * (y[:, None] + x))
    colors = 1 + np.array([photo.warmth, photo.tint, -photo.warmth])
    pixels = (np.asarray(image, np.float32) - 110) * np.float32(photo.contrast) + 110
    pixels *= (light[..., None] * colors).astype(np.float32)
    pixels += np.float32(photo.noise) * rng.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


def write_people(folder: Path, *, people: int, photos: int, seed: int) -> None:
    """Write a folder of JPEG files for each person."""
    for person in range(people):
        home = folder / f"{person:05}"
        home.mkdir(parents=True, exist_ok=True)
        for photo in range(photos):
            (home / f"{photo:03}.jpg").write_bytes(draw_photo(person, photo, seed=seed))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw faces of people who do not exist.")
    parser.add_argument("folder", type=Path, help="folder for the folders of the people")
    parser.add_argument("--people", type=int, default=500, help="number of people")
    parser.add_argument("--photos", type=int, default=20, help="number of photos of each person")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other people")
    options = parser.parse_args()
    write_people(options.folder, people=options.people, photos=options.photos, seed=options.seed)


if __name__ == "__main__":
    main()
