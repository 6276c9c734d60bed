"""CRC-32C: the vectors of RFC 3720, and a plain loop over bytes at lengths where pieces end."""

import numpy as np
import pytest

from snzoo.weights.crc32c import PIECE, crc32c


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_vectors(data, expected):
    assert crc32c(data) == expected


def bit_by_bit(data):
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 12, 1021, 4 * PIECE + 5])
def test_every_length_gives_the_checksum_of_a_loop_over_bits(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(memoryview(data)) == bit_by_bit(data)
