"""Draw a head from the numbers of a person, turned as the numbers of a photo say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Values = NDArray[np.float64]

SIZE = 112  # pixels of a photo
DRAWN = 2  # a photo is drawn larger by this factor, then reduced
UNIT = 44 * DRAWN  # pixels per unit of length; the origin is between the eyes and the mouth
ORIGIN = (0.5 * SIZE * DRAWN, 0.58 * SIZE * DRAWN)
ROUND = np.linspace(0, 2 * np.pi, 28, endpoint=False)
CIRCLE = np.stack([np.cos(ROUND), np.sin(ROUND)], -1)
ARCH = np.linspace(-1, 1, 9)

SKINS = [(250, 216, 194), (226, 178, 142), (184, 130, 92), (122, 80, 54), (74, 48, 36)]
HAIRS = [(26, 22, 22), (62, 42, 30), (118, 76, 42), (204, 164, 96), (146, 62, 30), (176, 174, 170)]
IRISES = [(60, 36, 22), (112, 76, 38), (98, 116, 70), (90, 134, 178), (120, 128, 134)]
REDDER = np.array([1, 0, -0.5])
BLACK, WHITE = np.zeros(3), np.full(3, 236.0)


class Canvas:
    """A picture of a head that is turned as a photo says."""

    def __init__(self, background: Image.Image, person: SimpleNamespace, photo: SimpleNamespace):
        self.image = background
        self.draw = ImageDraw.Draw(background)
        self.photo = photo
        self.radii = person.head_width, person.forehead
        turned = np.array([photo.yaw, photo.pitch])
        self.cosines, self.sines = np.cos(turned), np.sin(turned)
        roll = photo.zoom * UNIT * np.exp(1j * photo.roll)
        self.turn = np.array([(roll.real, roll.imag), (-roll.imag, roll.real)])
        self.center = ORIGIN + UNIT * np.array([photo.shift_x, photo.shift_y])

    def place(self, points: ArrayLike, depth: float | None = None) -> list[float]:
        """Return x and y of points, in pixels, at a depth toward the camera.

        The default is the depth of the face, an ellipsoid.
        """
        x, y = np.asarray(points, float).reshape(-1, 2).T
        if depth is None:
            inside = 1 - (x / self.radii[0]) ** 2 - (y / self.radii[1]) ** 2
            z = 0.7 * np.sqrt(np.maximum(inside, 0))
        else:
            z = depth
        x = x * self.cosines[0] + z * self.sines[0]
        y = y * self.cosines[1] + z * self.sines[1]
        placed = np.stack([x, y], -1) @ self.turn + self.center
        pixels: list[float] = placed.ravel().tolist()
        return pixels

    def fill(self, points: ArrayLike, color: Values, depth: float | None = None) -> None:
        self.draw.polygon(self.place(points, depth), fill=rgb(color))

    def line(
        self, points: ArrayLike, color: Values, width: float, depth: float | None = None
    ) -> None:
        pixels = max(1, round(width * UNIT * self.photo.zoom))
        self.draw.line(self.place(points, depth), fill=rgb(color), width=pixels, joint="curve")


def draw_person(
    image: Image.Image, person: SimpleNamespace, photo: SimpleNamespace, *, colors: Values
) -> None:
    """Draw a person on a background of ``SIZE * DRAWN`` pixels.

    Args:
        image: the background, in RGB.
        person, photo: the numbers of ``generated_faces.PERSON`` and ``PHOTO``.
        colors: the colors (2, 3) of the clothes, and of what hides a part of the face.
    """
    canvas = Canvas(image, person, photo)
    skin = blend(SKINS, person.skin) + person.skin_red * REDDER
    hair = blend(HAIRS, person.hair)
    head = _outline(person)
    _draw_behind(canvas, person, skin, hair, clothes=colors[0])
    canvas.fill(head, 0.88 * skin, 0)
    canvas.fill(0.92 * head, skin, 0.15)
    _draw_beard(canvas, person, head, 0.4 * skin + 0.6 * hair)
    _draw_nose(canvas, person, skin)
    _draw_mouth(canvas, person, skin)
    _draw_eyes(canvas, person, skin, hair)
    _draw_hair(canvas, person, head, hair)
    _draw_over(canvas, person, color=colors[1])


def rgb(color: Values) -> tuple[int, ...]:
    """Return a color for Pillow."""
    return tuple(int(value) for value in np.clip(color, 0, 255))


def blend(table: list[tuple[int, int, int]], position: float) -> Values:
    """Return the color at a position from 0 to 1 along a table of colors."""
    places = np.linspace(0, 1, len(table))
    return np.array([np.interp(position, places, channel) for channel in np.array(table).T])


def _outline(person: SimpleNamespace) -> Values:
    """Return the outline of the head (28, 2), clockwise from the right."""
    x, y = np.sign(CIRCLE).T * np.abs(CIRCLE.T) ** (2 / person.squareness)
    x = x * person.head_width * (1 - person.jaw * y.clip(0) ** 1.5)
    return np.stack([x, y * np.where(y < 0, person.forehead, person.chin)], -1)


def _draw_behind(
    canvas: Canvas, person: SimpleNamespace, skin: Values, hair: Values, *, clothes: Values
) -> None:
    """Draw the hair that hangs down, the neck, the clothes and the ears."""
    width = person.head_width
    if person.hair_style >= 1 and person.hair_length > -0.5:
        side, low = (width + person.hair_volume), person.hair_length
        sides = [(-side, -0.5), (side, -0.5), (side + 0.1, low), (-side - 0.1, low)]
        canvas.fill(sides, hair, -0.3)
    neck = 0.55 * width
    canvas.fill([(-neck, 0.3), (neck, 0.3), (neck, 2), (-neck, 2)], 0.8 * skin, -0.25)
    collar = [(-neck, 1.3), (neck, 1.3), (1.9, 1.7), (1.9, 3), (-1.9, 3), (-1.9, 1.7)]
    canvas.fill(collar, clothes, -0.2)
    for side in (-1, 1):
        ear = CIRCLE * (0.6 * person.ear_size, person.ear_size)
        ear += (side * (width + person.ear_out - 0.02), -0.1)
        canvas.fill(ear, 0.9 * skin, -0.2)


def _draw_beard(canvas: Canvas, person: SimpleNamespace, head: Values, color: Values) -> None:
    if person.beard > 0:
        low = head[(head[:, 1] > 0.1 + 0.3 * (1 - person.beard))]
        cheek = person.mouth_height - 0.2
        canvas.fill([*low, (-0.5, cheek), (0, cheek - 0.02), (0.5, cheek)], color, 0.05)
    if person.mustache > 0:
        y = person.mouth_height - person.upper_lip - 0.05
        w = person.mouth_width * (0.7 + 0.5 * person.mustache)
        hairs = [(-w, y + 0.06), (-0.1, y - 0.08), (0.1, y - 0.08), (w, y + 0.06), (0, y)]
        canvas.fill(hairs, color)


def _draw_nose(canvas: Canvas, person: SimpleNamespace, skin: Values) -> None:
    w, y = person.nose_width, person.nose_length
    tip = 0.95
    canvas.fill([(-0.04, -0.3), (0.3 * w, -0.3), (w, y), (0.3 * w, y + 0.05)], 0.93 * skin, 0.8)
    canvas.line([(-0.3 * w, -0.25), (-0.5 * w, y - 0.1)], 0.8 * skin, person.nose_bridge / 3, 0.75)
    canvas.fill(CIRCLE * (w, 0.45 * w + 0.02) + (0, y), 0.96 * skin, tip)
    canvas.fill(CIRCLE * (0.5 * w, 0.3 * w) + (0, y - 0.02), skin * 1.06 + 4, tip + 0.05)
    for side in (-1, 1):
        nostril = CIRCLE * (0.28 * w, 0.02 + 0.1 * w) + (side * 0.5 * w, y + 0.4 * w)
        canvas.fill(nostril, 0.4 * skin, tip - 0.05)


def _draw_mouth(canvas: Canvas, person: SimpleNamespace, skin: Values) -> None:
    photo = canvas.photo
    lips = (1 - person.lip_red) * 0.8 * skin + person.lip_red * np.array([172, 60, 68])
    x = person.mouth_width * ARCH * (1 + photo.smile)
    corners = person.mouth_height - photo.smile * ARCH**2 * 1.2
    round_off = 1 - ARCH**2
    gap = max(0.0, photo.mouth_open) * round_off
    bow = np.abs(np.abs(ARCH) - 0.3) < 0.2  # the two peaks of the upper lip
    upper = corners - person.upper_lip * (round_off + 0.25 * bow)
    lower = corners + gap + person.lower_lip * round_off
    edge = np.stack([x, corners], -1)
    canvas.fill([*np.stack([x, upper], -1), *edge[::-1]], 0.88 * lips)
    canvas.fill([*np.stack([x, lower], -1), *edge[::-1]], lips)
    if photo.mouth_open > 0:
        canvas.fill([*np.stack([x, corners + gap], -1), *edge[::-1]], np.array([70, 20, 24]))
        teeth = np.minimum(gap, 0.05)
        canvas.fill([*np.stack([0.8 * x, corners + teeth], -1), *(edge * (0.8, 1))[::-1]], WHITE)
    canvas.line(edge, 0.35 * lips, 0.018)


def _draw_eyes(canvas: Canvas, person: SimpleNamespace, skin: Values, hair: Values) -> None:
    photo, w = canvas.photo, person.eye_width
    height = w * person.eye_open * (1 - photo.lids)
    for side in (-1, 1):
        middle = np.array([side * person.eye_distance, -person.eye_height])
        slope = side * person.eye_tilt * ARCH * w
        lid = np.stack([ARCH * w, slope - height * (1 - ARCH**2)], -1) + middle
        lower = np.stack([ARCH * w, slope + 0.7 * height * (1 - ARCH**2)], -1) + middle
        crease = lid - (0, 0.05)
        canvas.line(crease, 0.72 * skin, 0.015)
        canvas.fill([*lid, *lower[::-1]], WHITE)
        radius = min(person.iris_size, 1.05 * height)
        ball = middle + np.array([photo.gaze, -0.1 * height])
        canvas.fill(CIRCLE * (person.iris_size, radius) + ball, blend(IRISES, person.iris))
        canvas.fill(CIRCLE * (0.45 * person.iris_size, 0.45 * radius) + ball, BLACK + 12)
        canvas.fill(CIRCLE[::4] * 0.02 + ball + (0.03, -0.03), WHITE)
        canvas.line(lid, 0.25 * skin, 0.028)
        canvas.line(lower, 0.6 * skin, 0.012)
        brow_y = -person.brow_height - photo.brow_raise + side * person.brow_tilt * ARCH * w
        brow_y = brow_y - person.brow_arch * (1 - ARCH**2)
        brow = np.stack([ARCH * person.brow_width, brow_y], -1) + middle
        thick = person.brow_thick * (1.15 - 0.6 * side * ARCH)
        edge = brow + np.stack([0 * thick, 2 * thick], -1)
        canvas.fill([*brow, *edge[::-1]], 0.75 * hair + 0.1 * skin)


def _draw_hair(canvas: Canvas, person: SimpleNamespace, head: Values, hair: Values) -> None:
    """Draw the hair above the hairline: 0 none, 1 short, 2 parted, 3 a fringe, 4 curls."""
    style = int(person.hair_style)
    if style == 0:
        return
    across = np.linspace(-1, 1, 15)
    temples = across**4
    line = -person.hair_line * (1 - temples) - 0.15 * temples
    if style == 2:
        line = line - 0.25 + 0.55 * np.abs(across - person.parting) * (1 - temples)
    if style == 3:
        fringe = min(-0.62 * person.hair_line, -0.12 - person.eye_height)
        line = np.where(np.abs(across) < 0.85, fringe, line)
    grown = 1 + person.hair_volume
    top = head[head[:, 1] < 0.05] * (grown, grown)
    top = top[np.argsort(top[:, 0])]
    if style == 4:
        for x, y in top[1:-1]:
            curl = 0.14 + 0.5 * person.hair_volume
            canvas.fill(CIRCLE * curl + (x, y), hair, -0.05)
    edge = np.stack([across * person.head_width * 1.01, line], -1)
    canvas.fill([*top, *edge[::-1]], hair, 0.05)
    canvas.line(top[4:-4] * (0.8, 0.94), 1.1 * hair + 6, 0.04, 0.05)


def _draw_over(canvas: Canvas, person: SimpleNamespace, *, color: Values) -> None:
    """Draw a mole and glasses, and what hides a part of the face in one of three photos."""
    photo, eyes = canvas.photo, -person.eye_height
    if person.mole > 0:
        canvas.fill(CIRCLE * 0.03 + (person.mole_x, person.mole_y), np.array([60, 34, 26]))
    hidden = int(photo.hidden)
    if person.glasses > 0 or hidden == 0:
        for side in (-1, 1):
            rim = CIRCLE * (0.27, 0.2) + (side * person.eye_distance, eyes + 0.03)
            if hidden == 0:
                canvas.fill(rim, BLACK + 16, 0.75)
            canvas.line([*rim, rim[0]], BLACK + 30, 0.03, 0.75)
            canvas.line([(side * 0.7, eyes), (side * person.head_width, eyes)], BLACK + 30, 0.03)
        canvas.line([(-0.12, eyes), (0.12, eyes)], BLACK + 30, 0.03, 0.8)
    if hidden == 1:  # a scarf or a mask
        canvas.fill(CIRCLE * (0.75, 0.5) + (0, 0.85), color, 0.6)
    if hidden == 2:  # a cap
        cap = CIRCLE[14:] * (person.head_width + 0.1, person.forehead + 0.1) + (0, -0.45)
        canvas.fill(cap, color, 0.1)
        canvas.fill(CIRCLE * (0.8, 0.14) + (0, -0.55), 0.8 * color, 0.6)
    if hidden == 3:  # a thing before the camera
        canvas.fill(CIRCLE * 0.35 + (photo.hidden_x, photo.hidden_y), color, 0)
