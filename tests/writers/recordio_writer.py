"""RecordIO files of MXNet, and the records of insightface in them."""

import struct

MAGIC = bytes.fromhex("0a23d7ce")


def pack(photo, labels, *, number=0):
    """The content of a record: one label in the header, or several after it."""
    if isinstance(labels, (int, float)):
        return struct.pack("<IfQQ", 0, labels, number, 0) + photo
    header = struct.pack("<IfQQ", len(labels), 0, number, 0)
    return header + struct.pack(f"<{len(labels)}f", *labels) + photo


def split(content):
    """The parts between magic numbers at multiples of 4 bytes."""
    parts, start = [], 0
    for at in range(0, len(content) - 3, 4):
        if content[at : at + 4] == MAGIC:
            parts.append(content[start:at])
            start = at + 4
    return [*parts, content[start:]]


def frame(content):
    """A record as it lies in the file."""
    parts = split(content)
    kinds = [1, *[2] * (len(parts) - 2), 3] if len(parts) > 1 else [0]
    return b"".join(
        MAGIC + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
        for kind, part in zip(kinds, parts, strict=True)
    )


def write_records(path, records):
    """Write ``path`` and its .idx from a mapping of keys to contents, in the mapping's order."""
    data, lines = b"", []
    for key, content in records.items():
        lines.append(f"{key}\t{len(data)}\n")
        data += frame(content)
    path.write_bytes(data)
    path.with_suffix(".idx").write_text("".join(lines))
    return path


def insightface(people):
    """insightface's records of people, a mapping from labels to photos.

    The photos are followed by a record for each person, with the first of the person's photos and
    the first of the next person's, and by record 0, with the first and the last of these records.
    """
    records, ranges = {}, []
    for label, photos in people.items():
        first = len(records) + 1
        for photo in photos:
            records[len(records) + 1] = pack(photo, [label, 1.0], number=len(records) + 1)
        ranges.append((first, len(records) + 1))
    end = len(records) + 1
    records |= {end + i: pack(b"", pair, number=end + i) for i, pair in enumerate(ranges)}
    return records | {0: pack(b"", (end, end + len(ranges)))}
