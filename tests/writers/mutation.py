"""Random changes of files."""

from tensorflow_writer import varint


def mutate(content, chance):
    """Change, remove, insert, repeat or cut a few bytes."""
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(len(content) + 1)
        piece = chance.choice(
            [
                chance.randbytes(chance.randint(1, 4)),
                varint(chance.choice([0, 1, 127, 1 << 31, (1 << 32) - 1, 1 << 62, -1])),
                bytes(content[at : at + chance.randint(1, 40)]),
            ]
        )
        removed = chance.choice([0, len(piece), chance.randint(0, 20)])
        content[at : at + removed] = piece if chance.random() < 0.8 else b""
    return bytes(content)
