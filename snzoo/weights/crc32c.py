"""Compute CRC-32C checksums with NumPy.

The register of a CRC is linear over GF(2): the register after two parts of equal length is the
register after the first part, advanced by as many zero bits as the second part has, XORed with the
register after the second part. All neighboring words are joined in this way, then all neighboring
pairs, and so on, so each step is one operation on an array.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # Castagnoli's, with reflected bits
LEVELS = 16
PIECE = 1 << LEVELS  # words; the arrays of one piece fit into the cache of a CPU

Words = NDArray[np.uint32]
Table = tuple[Words, Words]  # indexed with the low and with the high half of a word


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of ``data``, a number of 32 bits."""
    words = np.frombuffer(data, "<u4", len(data) // 4)
    register = 0xFFFFFFFF
    for start in range(0, len(words), PIECE):
        piece = words[start : start + PIECE].astype(np.uint32)
        piece[0] ^= np.uint32(register)
        register = _advance_over(piece)
    _, high = _advance_tables()[0]
    for byte in data[4 * len(words) :]:
        # The topmost byte is at the bottom after 24 of the 32 steps, so 8 steps are left.
        register = int(high[((register ^ byte) & 0xFF) << 8]) ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def _advance_over(words: Words) -> int:
    """Return the register after some words, from a register of 0."""
    tables = _advance_tables()
    for table in tables:
        if len(words) == 1:
            break
        if len(words) % 2:  # leading zeros do not change a register of 0
            words = np.concatenate([np.zeros(1, np.uint32), words])
        words = _advance(words[0::2], table) ^ words[1::2]
    return int(_advance(words, tables[0])[0])


def _advance(words: Words, table: Table) -> Words:
    advanced: Words = table[0][words & 0xFFFF] ^ table[1][words >> 16]
    return advanced


@functools.cache
def _advance_tables() -> list[Table]:
    """Return the tables that advance a register by 1, 2, 4, … words of zeros."""
    images = np.uint32(1) << np.arange(32, dtype=np.uint32)  # of each bit
    for _ in range(32):
        images = (images >> np.uint32(1)) ^ (images & np.uint32(1)) * np.uint32(POLYNOMIAL)
    tables = []
    for _ in range(LEVELS):
        table = _span(images[:16]), _span(images[16:])
        tables.append(table)
        images = _advance(images, table)
    return tables


def _span(images: Words) -> Words:
    """Return the image of every number, from the images of its bits."""
    table = np.zeros(1, np.uint32)
    for image in images:
        table = np.concatenate([table, table ^ image])
    return table
