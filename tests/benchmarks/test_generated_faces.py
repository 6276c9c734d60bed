"""Generated faces: the same for a seed, different people, and not told apart by plain pixels."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "generated_faces.py"


def read(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def digest(folder):
    files = sorted(folder.rglob("*.jpg"))
    return [(str(f.relative_to(folder)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def test_a_seed_gives_the_same_folders(tmp_path):
    for name, seed in [("first", 3), ("again", 3), ("other", 4)]:
        command = [SCRIPT, tmp_path / name, "--people", 2, "--photos", 3, "--seed", seed]
        subprocess.run([sys.executable, *map(str, command)], check=True)
    first, again, other = (digest(tmp_path / name) for name in ("first", "again", "other"))
    assert [path for path, _ in first] == [
        f"{person:05}/{photo:03}.jpg" for person in range(2) for photo in range(3)
    ]
    assert first == again
    assert not {hashed for _, hashed in first} & {hashed for _, hashed in other}
    for file in (tmp_path / "first").rglob("*.jpg"):
        image = Image.open(file)
        assert (image.format, image.size, image.mode) == ("JPEG", (112, 112), "RGB")


def test_a_photo_depends_on_its_own_numbers_alone():
    from generated_faces import draw_photo

    photos = {(person, photo): draw_photo(person, photo) for person in (0, 7) for photo in (0, 5)}
    assert len(set(photos.values())) == 4
    assert draw_photo(7, 5) == photos[7, 5] != draw_photo(7, 5, seed=1)


def test_the_numbers_of_a_photo_are_not_those_of_the_person(monkeypatch):
    """Equal streams of random numbers would tie the pose of a photo to the person."""
    import generated_faces

    drawn = []
    sample = generated_faces.sample_numbers

    def record(ranges, rng):
        numbers = sample(ranges, rng)
        low, high = np.array(list(ranges.values())).T
        drawn.append((np.array(list(vars(numbers).values())) - low) / (high - low))
        return numbers

    monkeypatch.setattr(generated_faces, "sample_numbers", record)
    for photo in range(3):
        generated_faces.draw_photo(5, photo)
    people, photos = drawn[::2], drawn[1::2]
    assert all((person == people[0]).all() for person in people)
    length = len(photos[0])
    assert not any(np.allclose(photo, people[0][:length]) for photo in photos)
    assert not np.allclose(photos[0], photos[1])
    assert all(((numbers >= 0) & (numbers <= 1)).all() for numbers in drawn)


def accuracy(features, people):
    """Accuracy at the best threshold of distances, for as many pairs of one person as of two."""
    rng = np.random.default_rng(0)
    rows = features.reshape(len(features), -1).astype(np.float64)
    first, second = np.triu_indices(len(rows), 1)
    same = people[first] == people[second]
    different = rng.choice(np.flatnonzero(~same), same.sum(), replace=False)
    chosen = np.concatenate([np.flatnonzero(same), different])
    distances = np.linalg.norm(rows[first[chosen]] - rows[second[chosen]], axis=1)
    ranked = same[chosen][np.argsort(distances)]
    correct = np.cumsum(ranked) + (~ranked).sum() - np.cumsum(~ranked)
    return correct.max() / len(ranked)


@pytest.fixture(scope="module")
def photos():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from generated_faces import draw_photo
    finally:
        sys.path.remove(str(SCRIPT.parent))
    people = np.repeat(np.arange(40), 5)
    drawn = [read(draw_photo(int(p), k % 5)) for k, p in enumerate(people)]
    return np.stack(drawn).astype(np.float32), people


def test_pixels_and_colors_do_not_verify_people(photos):
    """The best threshold is chosen on these very pairs, which flatters."""
    pixels, people = photos
    assert accuracy(pixels, people) < 0.7
    assert accuracy(pixels.mean((1, 2)), people) < 0.7
    assert accuracy(people[:, None], people) == 1  # the measure itself


def test_people_differ_more_than_chance(photos):
    """Without light, the shapes say something."""
    pixels, people = photos
    grey = pixels.mean(3)
    grey -= grey.mean((1, 2), keepdims=True)
    assert accuracy(grey / grey.std((1, 2), keepdims=True), people) > 0.6
