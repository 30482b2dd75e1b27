"""Reads `reprise.yaml` key by key; every error names the key and the fix."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from inference_core import Dtype, TensorSpec
from services.chassis.errors import InvalidInput

_CONFIG_BYTES_MAX = 64 << 10


def parse_config(text: bytes) -> "Section":
    if len(text) > _CONFIG_BYTES_MAX:
        raise InvalidInput(f"reprise.yaml has more than {_CONFIG_BYTES_MAX} bytes")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InvalidInput(f"reprise.yaml is not valid YAML: {reason}") from error
    return Section("reprise.yaml", document)


class Section:
    """A mapping of which every key must be read before `finish`."""

    def __init__(self, path: str, values: object) -> None:
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise InvalidInput(f"{path} must be a mapping of names to values")
        self.path = path
        self._values: dict[str, Any] = values
        self._read: set[str] = set()

    def fail(self, key: str, problem: str) -> InvalidInput:
        return InvalidInput(f"{self.path}.{key} {problem}")

    def names(self) -> list[str]:
        return list(self._values)

    def has(self, key: str) -> bool:
        return self._values.get(key) is not None

    def section(self, key: str) -> "Section":
        self._read.add(key)
        return Section(f"{self.path}.{key}", self._values.get(key, {}))

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a text, got {_kind(value)}")
        return value

    def choice(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self._take(key, default)
        if value not in allowed:
            raise self.fail(key, f"must be one of {', '.join(allowed)}; got {value!r}")
        return str(value)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(key, f"must be a whole number, got {_kind(value)}")
        return value

    def number(self, key: str) -> float | None:
        if not self.has(key):
            self._read.add(key)
            return None
        value = self._take(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(key, f"must be a number, got {_kind(value)}")
        return value

    def numbers(self, key: str, count: int, default: float) -> tuple[float, ...]:
        value = self._take(key, [default] * count)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count or any(
            not isinstance(item, int | float) or isinstance(item, bool) for item in values
        ):
            raise self.fail(key, f"must hold {count} numbers, one per channel")
        return tuple(float(item) for item in values)

    def finish(self) -> None:
        """Refuses keys that nothing has asked for."""
        unknown = [key for key in self._values if key not in self._read]
        if unknown:
            known = ", ".join(sorted(self._read))
            raise self.fail(unknown[0], f"is unknown; use one of: {known}")

    def _take(self, key: str, default: object = None) -> Any:
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.fail(key, "is missing")
        return value


def _kind(value: object) -> str:
    return type(value).__name__


def describe_keys(values: Mapping[str, object]) -> str:
    return ", ".join(f"'{key}'" for key in values)


def json_type(spec: TensorSpec) -> str:
    """What JSON Schema calls one element."""
    if spec.dtype is Dtype.BOOL:
        return "boolean"
    return "number" if spec.dtype.is_float else "integer"
