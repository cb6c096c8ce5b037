"""Dataclasses as primitives, for a checkpoint and metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self, get_args, get_origin, get_type_hints


class Record:
    """Base of dataclasses that are stored as primitives, one key per field."""

    def to_dict(self) -> dict[str, Any]:
        """Primitives of the fields, by name."""
        return {field.name: _primitive(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Record that `to_dict` described; keys that are no fields are left aside.

        Raises:
            TypeError: If a field without a default is missing.
        """
        kinds = get_type_hints(cls)
        names = [field.name for field in fields(cls) if field.name in state]  # type: ignore[arg-type]
        return cls(**{name: _restored(kinds[name], state[name]) for name in names})


def _primitive(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _primitive(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _restored(kind: Any, value: Any) -> Any:
    """Value of a field of this type: records in place of mappings, tuples in place of lists."""
    if hasattr(kind, "from_dict"):
        return kind.from_dict(value) if isinstance(value, Mapping) else value
    if get_origin(kind) is tuple:
        return tuple(value)
    if get_origin(kind) is not Mapping:
        return value
    # Of a union, such as a baseline or the reason why there is none, the record.
    records = [one for one in get_args(get_args(kind)[-1]) if hasattr(one, "from_dict")]
    return {key: _restored(records[0], one) for key, one in value.items()} if records else value
