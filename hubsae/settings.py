"""Frozen dataclasses of settings: their values have the types that they announce."""

import dataclasses
import math
import operator
import types
import typing
from typing import Any

from hubsae.errors import ConfigError


def check_types(config: Any) -> None:
    """Bring every field of a dataclass to its announced type, or raise `ConfigError`.

    Whole numbers of other libraries become int, whole numbers where a float is expected become float; bools are no
    numbers, and infinity and NaN are no settings.
    """
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, kind = getattr(config, item.name), hints[item.name]
        allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if value is None and type(None) in allowed:
            continue
        wanted = next(k for k in allowed if k is not type(None))
        if typing.get_origin(wanted) is tuple:
            if not isinstance(value, list | tuple):
                raise ConfigError(f"{item.name}={str(value)[:80]!r}: expected a tuple")
            value = tuple(as_type(v, typing.get_args(wanted)[0], item.name) for v in value)
        else:
            value = as_type(value, wanted, item.name)
        object.__setattr__(config, item.name, value)


def as_type(value: Any, wanted: type, name: str) -> Any:
    """`value` as an int, float, bool, str or dict, or `ConfigError` that names the setting."""
    try:
        if isinstance(value, bool) and wanted is not bool:
            raise TypeError
        if wanted is int:
            return operator.index(value)
        if wanted is float and not isinstance(value, str) and math.isfinite(value):
            return float(value)
    except (TypeError, OverflowError):
        pass
    if isinstance(value, wanted) and wanted in (bool, str, dict):
        return value
    raise ConfigError(f"{name}={str(value)[:80]!r}: expected a value of type {wanted.__name__}")
