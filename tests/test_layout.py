"""Imports run one way: a room may import from itself and from lower floors only."""

import ast
from pathlib import Path

import pytest

import snzoo

PACKAGE = Path(snzoo.__file__).parent
FLOORS = [
    {"errors"},
    {"environment", "files", "http", "intervals", "processes", "typed_json"},
    {"preprocessing", "recipes"},
    {"entry"},
    {"manifest", "nn"},
    {"models", "weights", "data"},
    {"spec"},
    {"registry"},
    {"inference"},
    {"faces"},
    {"evaluation"},
    {"report"},
    {"gates"},
    {"serve"},
    {"export", "finetune", "integrations", "share", "tasks"},
    {"training"},
    {"cli"},
    {"__main__", "__init__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
NOT_FOR = {
    "weights": {"models"},
    "data": {"models"},
    "manifest": {"torch"},
    "recipes": {"torch"},
    "nn": {"torchvision"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Top-level names, and the rooms of snzoo, that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            first, *rest = name.split(".")
            yield rest[0] if first == "snzoo" and rest else first


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    rooms = {name for name in imported(path) if name in FLOOR and name != room}
    assert not {name for name in rooms if FLOOR[name] >= FLOOR[room]}
    assert not NOT_FOR.get(room, set()) & set(imported(path))
