"""A version's input schema, compiled once, and its problems in the words of the HTTP API."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import orjson

from services.chassis.errors import FieldViolation, InvalidInput

PROBLEM_COUNT_MAX = 20

# JSON Schema keyword -> the API's word for the problem, and a sentence about the limit.
_KINDS: Mapping[str, tuple[str, str]] = {
    "minimum": ("number_gte", "must be greater than or equal to {}"),
    "maximum": ("number_lte", "must be less than or equal to {}"),
    "exclusiveMinimum": ("number_gt", "must be greater than {}"),
    "exclusiveMaximum": ("number_lt", "must be less than {}"),
    "multipleOf": ("multiple_of", "must be a multiple of {}"),
    "minLength": ("string_gte", "must be at least {} characters long"),
    "maxLength": ("string_lte", "must be at most {} characters long"),
    "pattern": ("pattern", "must match the pattern {}"),
    "enum": ("enum", "must be one of {}"),
    "const": ("const", "must be {}"),
    "minItems": ("array_min_items", "must have at least {} items"),
    "maxItems": ("array_max_items", "must have at most {} items"),
    "uniqueItems": ("unique", "must not repeat items"),
    "type": ("invalid_type", "must be of type {}"),
    "anyOf": ("any_of", "matches none of the allowed forms"),
    "oneOf": ("one_of", "must match exactly one of the allowed forms"),
}


class InputSchema:
    """Checks inputs of one version."""

    def __init__(self, openapi_text: str) -> None:
        document = orjson.loads(openapi_text) if openapi_text else {}
        schemas = _translate(document.get("components", {}).get("schemas", {}))
        schema = schemas.get("Input") or {"type": "object"}
        self._properties: frozenset[str] | None = None
        if "properties" in schema and not schema.get("additionalProperties"):
            self._properties = frozenset(schema["properties"])
        self._nullable = frozenset(
            name for name in schema.get("properties", {}) if name not in schema.get("required", ())
        )
        self._validator = jsonschema_rs.Draft202012Validator(
            {"components": {"schemas": schemas}, **schema}, validate_formats=False
        )

    def check(self, text: str) -> str:
        """The input as it is stored; raises InvalidInput that names each bad field."""
        values = _object_of(text)
        if None in values.values():
            # Python's json keeps integers of any size; only inputs with a null pay for it.
            values = {
                name: value
                for name, value in json.loads(text).items()
                if value is not None or name not in self._nullable
            }
            text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        problems = self._unknown(values)
        if problems or not self._validator.is_valid(values):
            for error in self._validator.iter_errors(values):
                problems.append(_violation(error))
                if len(problems) >= PROBLEM_COUNT_MAX:
                    break
        if problems:
            raise _invalid(problems)
        return text

    def _unknown(self, values: Mapping[str, object]) -> list[FieldViolation]:
        if self._properties is None or self._properties.issuperset(values):
            return []
        unknown = sorted(values.keys() - self._properties)[:PROBLEM_COUNT_MAX]
        return [
            FieldViolation(
                field=f"input.{name}",
                description=f"Additional property {name} is not allowed",
                kind="additional_property_not_allowed",
            )
            for name in unknown
        ]


def _object_of(text: str) -> dict[str, Any]:
    try:
        values = orjson.loads(text) if text else {}
    except orjson.JSONDecodeError as error:
        raise _invalid([FieldViolation("input", f"is not JSON: {error}", "invalid_json")]) from None
    if not isinstance(values, dict):
        raise _invalid([FieldViolation("input", "must be an object", "invalid_type")])
    return values


def _invalid(problems: list[FieldViolation]) -> InvalidInput:
    lines = "".join(f"- {problem.field}: {problem.description}\n" for problem in problems)
    return InvalidInput(lines, reason="INPUT_VALIDATION_FAILED", fields=problems)


def _violation(error: jsonschema_rs.ValidationError) -> FieldViolation:
    # The instance itself is never quoted: it may be a secret or very long.
    path = ".".join(["input", *(str(part) for part in error.instance_path)])
    keyword = error.kind.name
    if keyword == "required":
        return FieldViolation(path, f"{error.kind.value} is required", "required")
    if keyword == "additionalProperties":
        return FieldViolation(
            path, "has properties that are not allowed", "additional_property_not_allowed"
        )
    if keyword == "anyOf" and (inner := _telling(error.kind.value)) is not None:
        return _violation(inner)
    kind, sentence = _KINDS.get(keyword, (keyword, f"does not satisfy {keyword}"))
    limit = error.kind.value
    if keyword in ("enum", "type"):
        words = ", ".join(json.dumps(item) if keyword == "enum" else str(item) for item in limit)
        return FieldViolation(path, sentence.format(words), kind)
    return FieldViolation(path, sentence.format(limit), kind)


def _telling(
    branches: list[list[jsonschema_rs.ValidationError]],
) -> jsonschema_rs.ValidationError | None:
    """The problem of the one form that has the right type, where there is one."""
    problems = [error for branch in branches for error in branch if error.kind.name != "type"]
    return problems[0] if len(problems) == 1 else None


def _translate(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` and boolean exclusive bounds as JSON Schema 2020-12."""
    if isinstance(schema, list):
        return [_translate(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _translate(value) for key, value in schema.items()}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(result.get(exclusive), bool):
            is_exclusive = result.pop(exclusive)
            if is_exclusive and bound in result:
                result[exclusive] = result.pop(bound)
    # Under `properties` the same word may be the name of an input, with a schema as its value.
    if isinstance(result.get("nullable"), bool) and result.pop("nullable"):
        return _with_null(result)
    if result.get("format") == "uri" and "type" not in result:
        result["type"] = "string"
    return result


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(schema.get("type"), str):
        return {"anyOf": [{"type": "null"}, schema]}
    if "enum" in schema:
        schema = schema | {"enum": [*schema["enum"], None]}
    return schema | {"type": [schema["type"], "null"]}
