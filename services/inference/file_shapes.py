"""Where a version's schema allows files in its input and output, worked out once per version."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DEPTH_LIMIT = 12


@dataclass(frozen=True, slots=True)
class FileShape:
    """The branches of a schema that lead to files; a schema without any has no shape."""

    is_file: bool = False
    items: "FileShape | None" = None
    properties: Mapping[str, "FileShape"] = field(default_factory=dict)
    others: "FileShape | None" = None


@dataclass(frozen=True, slots=True)
class VersionShapes:
    """`input` holds file properties and arrays of files only; `output` the whole output."""

    input: Mapping[str, FileShape]
    output: FileShape | None

    @property
    def item(self) -> FileShape | None:
        """Of one item of an iterator's output."""
        return self.output.items if self.output else None


def read_shapes(schema: Mapping[str, Any]) -> VersionShapes:
    schemas = _mapping(_mapping(schema.get("components")).get("schemas"))
    properties = _mapping(_mapping(schemas.get("Input")).get("properties"))
    inputs = {name: _shape(value, schemas, 0) for name, value in properties.items()}
    return VersionShapes(
        input={name: shape for name, shape in inputs.items() if shape is not None},
        output=_shape(_mapping(schemas.get("Output")), schemas, 0),
    )


def _shape(schema: Any, schemas: Mapping[str, Any], depth: int) -> FileShape | None:
    schema = _resolved(_mapping(schema), schemas)
    if depth > _DEPTH_LIMIT:
        return None
    if schema.get("format") == "uri" and schema.get("type") == "string":
        return FileShape(is_file=True)
    items = _shape(schema.get("items"), schemas, depth + 1) if schema.get("items") else None
    found = {
        name: _shape(value, schemas, depth + 1)
        for name, value in _mapping(schema.get("properties")).items()
    }
    properties = {name: shape for name, shape in found.items() if shape is not None}
    others = _shape(schema.get("additionalProperties"), schemas, depth + 1)
    if items is None and not properties and others is None:
        return None
    return FileShape(items=items, properties=properties, others=others)


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(_DEPTH_LIMIT):
        target = schema.get("$ref")
        if target is None and isinstance(schema.get("allOf"), list) and len(schema["allOf"]) == 1:
            target = _mapping(schema["allOf"][0]).get("$ref")
        if not isinstance(target, str):
            return schema
        schema = _mapping(schemas.get(target.rpartition("/")[2]))
    return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
