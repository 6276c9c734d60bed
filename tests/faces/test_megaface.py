"""MegaFace's feature files: read, written, read in matrices, or refused with the reason."""

import os
import struct

import numpy as np
import pytest

from snzoo.errors import DataError
from snzoo.faces.megaface import append_noise_mark, read_features, read_matrices, write_features

VALUES = [0.5, -1.25, 3.0]
FILE = bytes.fromhex("03000000 01000000 04000000 05000000 0000003f 0000a0bf 00004040")


def test_a_file_is_four_integers_and_the_numbers(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(FILE)
    features = read_features(path)
    assert features.dtype == np.float32 and features.tolist() == VALUES
    write_features(tmp_path / "b.bin", np.array(VALUES))
    assert (tmp_path / "b.bin").read_bytes() == FILE
    path.write_bytes(struct.pack("<4i3f", 1, 3, 12, 5, *VALUES))  # one row
    assert read_features(path).tolist() == VALUES


def header(*numbers, size=12):
    return struct.pack("<4i", *numbers) + bytes(size)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "its header is cut short"),
        (FILE[:15], "its header is cut short"),
        (header(3, 1, 4, 6), r"\(3, 1, 4, 6\) is not \(D, 1, 4, 5\)"),
        (header(3, 1, 12, 5), "is not"),
        (header(3, 2, 8, 5, size=24), "is not"),
        (header(0, 1, 4, 5, size=0), "is not"),
        (header(-3, 1, 4, 5), "is not"),
        (struct.pack(">4i3f", 3, 1, 4, 5, *VALUES), "is not"),
        (header(2**31 - 1, 1, 4, 5), "28 bytes are not those of 2,147,483,647 numbers"),
        (header(2, 1, 4, 5), "28 bytes are not those of 2 numbers"),
        (header(4, 1, 4, 5), "28 bytes are not those of 4 numbers"),
        (header(70_000, 1, 4, 5, size=280_000), "are not those of 70,000 numbers"),
        (struct.pack("<4i2f", 2, 1, 4, 5, 1, float("nan")), "not all finite"),
        (struct.pack("<4i2f", 2, 1, 4, 5, 1, float("inf")), "not all finite"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"can't read .*a.bin: .*{message}"):
        read_features(path)


def test_a_missing_or_irregular_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.bin: no such file"):
        read_features(tmp_path / "a.bin")
    os.mkfifo(tmp_path / "a.bin")
    with pytest.raises(DataError, match=r"a.bin: not a regular file"):
        read_features(tmp_path / "a.bin")


def write_many(folder, names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_features(folder / name, np.array([i, i + 0.5]))


@pytest.mark.parametrize("rows, sizes", [(2, [2, 2, 1]), (5, [5]), (100, [5])])
def test_a_folder_or_a_list_is_read_in_matrices(tmp_path, rows, sizes):
    names = ["1/a.bin", "1/b.bin", "2/3/c.bin", "2/c.bin", "d.bin"]
    write_many(tmp_path, names)
    (tmp_path / "1" / "photo.jpg").touch()
    matrices = list(read_matrices([tmp_path / name for name in names], rows=rows))
    assert [len(matrix) for matrix in matrices] == sizes
    assert all(matrix.dtype == np.float32 for matrix in matrices)
    assert np.concatenate(matrices).tolist() == [[i, i + 0.5] for i in range(5)]
    found = np.concatenate(list(read_matrices(str(tmp_path), rows=rows)))
    assert found[:, 0].tolist() == [4, 0, 1, 3, 2]  # the files of a folder precede its folders


def test_files_are_read_when_their_matrix_is_due(tmp_path):
    write_many(tmp_path, ["a.bin", "b.bin"])
    (tmp_path / "c.bin").write_bytes(b"")
    matrices = read_matrices(tmp_path, rows=2)
    assert len(next(matrices)) == 2
    with pytest.raises(DataError, match=r"c.bin: its header"):
        next(matrices)


def test_features_of_different_lengths_are_refused(tmp_path):
    write_many(tmp_path, ["a.bin"])
    write_features(tmp_path / "b.bin", np.array(VALUES))
    for rows in (1, 2):
        with pytest.raises(DataError, match=r"b.bin: 3 numbers, but the first file has 2"):
            list(read_matrices(tmp_path, rows=rows))


def test_a_folder_without_features_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=r"feature file"):
            list(read_matrices(path))


def test_noisy_photos_are_marked_by_one_more_number():
    features = np.array([[1, 2], [3, 4]], np.float32)
    marked = append_noise_mark(features, np.array([False, True]))
    assert marked.dtype == np.float32 and marked.tolist() == [[1, 2, 0], [3, 4, 100]]
