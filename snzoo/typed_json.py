"""Convert JSON values to frozen dataclasses, and check each field against its type."""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from snzoo.errors import ManifestError


class FrozenDict(dict[str, Any]):
    """A dictionary that cannot be changed. :func:`freeze` converts JSON objects to it."""

    def _refuse(self, *args: Any, **values: Any) -> NoReturn:
        raise TypeError("this dictionary is frozen; copy it with dict(...) to change the copy")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


def freeze(value: Any) -> Any:
    """Return an immutable copy of a JSON value, with tuples and :class:`FrozenDict`."""
    if isinstance(value, Mapping):
        return FrozenDict({key: freeze(item) for key, item in value.items()})
    return tuple(map(freeze, value)) if isinstance(value, (list, tuple)) else value


def convert(value: Any, kind: Any, where: str) -> Any:
    """Return a JSON value as an object of the type ``kind``. Lists become tuples.

    Args:
        value: the JSON value.
        kind: a dataclass, or the type of a field of a dataclass.
        where: the place of the value in the document, for errors.

    Raises:
        ManifestError: the value does not have this type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_to_dataclass(value, kind, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_to_union(value, arguments, where)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ManifestError(f"{where} must be one of {list(arguments)}, got {value!r}")
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ManifestError(f"{where} must have {len(kinds)} items, got {len(value)}")
        return tuple(
            convert(item, of, f"{where}[{i}]")
            for i, (item, of) in enumerate(zip(value, kinds, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return FrozenDict(
            {key: convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
        )
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (bool, int, str, type(None)) and type(value) is kind:
        return value
    raise ManifestError(f"{where} has the wrong type: {value!r}")


def _convert_to_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    choices = [kind for kind in kinds if kind is not type(None)]
    if len(choices) == 1:  # keep the inner message, which names the field
        return convert(value, choices[0], where)
    for kind in choices:
        try:
            return convert(value, kind, where)
        except ManifestError:
            continue
    raise ManifestError(f"{where} has the wrong type: {value!r}")


def _convert_to_dataclass(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ManifestError(f"{where} must be an object, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise ManifestError(f"{where} has an unknown field {unknown[0]!r}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if name not in value and required:
            raise ManifestError(f"{where}.{name} is missing")
    converted = {
        name: convert(item, fields[name].type, f"{where}.{name}") for name, item in value.items()
    }
    try:
        return kind(**converted)
    except ManifestError as error:
        raise ManifestError(f"{where}: {error}") from None
