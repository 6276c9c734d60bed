"""Write TensorFlow checkpoints of the format V1, after the description of the format."""

import itertools

import numpy as np

from snzoo.weights.crc32c import crc32c

MAGIC = 0xDB4775248B80FB57


def varint(number):
    number %= 1 << 64
    groups = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def whole(rank):
    """A slice that extends over all dimensions."""
    return field(1, b"") * rank


def declare(name, shape, kind, *, part=None):
    """SavedSliceMeta"""
    sizes = b"".join(field(2, field(1, size)) for size in shape)
    part = whole(len(shape)) if part is None else part
    return field(1, name.encode()) + field(2, sizes) + field(3, kind) + field(4, part)


def hold(name, rank, values, *, part=None):
    """SavedSlice, in the message of an entry"""
    part = whole(rank) if part is None else part
    return field(2, field(1, name.encode()) + field(2, part) + field(3, values))


def block(entries, interval):
    """Entries whose keys share bytes with the last one, and where they do not."""
    content, restarts, last = b"", [0], b""
    for i, (key, value) in enumerate(entries):
        shared = next(
            (k for k, (a, b) in enumerate(zip(key, last, strict=False)) if a != b),
            min(len(key), len(last)),
        )
        if i % interval == 0:
            shared = 0
            restarts[i // interval :] = [len(content)]
        content += b"".join(varint(n) for n in (shared, len(key) - shared, len(value)))
        content += key[shared:] + value
        last = key
    return content + np.array([*restarts, len(restarts)], "<u4").tobytes()


def seal(content, kind=0):
    crc = crc32c(content + bytes([kind]))
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)
    return content + bytes([kind]) + masked.to_bytes(4, "little")


def handle(start, size):
    return varint(start) + varint(size)


def join(blocks, *, handles=None, kind=0, index=None):
    """A table of data blocks. The key of each in the index is after all keys of the table."""
    places = itertools.accumulate([len(content) + 5 for content in blocks], initial=0)
    handles = handles or [handle(at, len(b)) for at, b in zip(places, blocks, strict=False)]
    data = b"".join(seal(content, kind) for content in blocks)
    meta = block([], 1)
    index = index or block([(b"\1", place) for place in handles], 1)
    footer = handle(len(data), len(meta)) + handle(len(data) + len(meta) + 5, len(index))
    end = footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")
    return data + seal(meta) + seal(index) + end


def blocks_of(arrays, *, nominal):
    """The data blocks of float32 arrays and int64 scalars."""
    meta = b""
    entries = []
    for name, array in sorted(arrays.items()):
        rank, floats = np.ndim(array), np.asarray(array).dtype == np.float32
        meta += field(1, declare(name, np.shape(array), 1 if floats else 9))
        values = field(5, array.tobytes()) if floats else field(10, varint(int(array)))
        key = b"\0" + name.encode() + b"\0\1" + (bytes([1, rank]) if rank else b"\0")
        entries.append((key + b"\x80\x7f" * rank, hold(name, rank, values)))
    groups, size = [[]], 0
    for key, value in [(b"", field(1, meta + field(2, field(1, 1)))), *entries]:
        if size >= nominal:
            groups.append([])
            size = 0
        groups[-1].append((key, value))
        size += len(key) + len(value)
    return [block(group, 16) for group in groups]


def write(arrays, *, nominal=1 << 18):
    """The file of a V1 Saver."""
    return join(blocks_of(arrays, nominal=nominal))
