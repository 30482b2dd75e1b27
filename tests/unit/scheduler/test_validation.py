"""Inputs against schemas as cog writes them."""

import json

import pytest

from services.chassis.errors import InvalidInput
from services.scheduler.validation import InputSchema


def schema(properties: dict[str, object], **more: object) -> InputSchema:
    document = {
        "components": {
            "schemas": {
                "Input": {"type": "object", "properties": properties, **more},
                "mode": {"type": "string", "enum": ["fast", "slow"]},
            }
        }
    }
    return InputSchema(json.dumps(document))


@pytest.mark.parametrize(
    ("prop", "value", "kind", "words"),
    [
        ({"type": "integer", "minimum": 1}, 0, "number_gte", "1"),
        ({"type": "integer", "maximum": 5}, 6, "number_lte", "5"),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, 0, "number_gt", "0"),
        ({"type": "integer", "maximum": 5, "nullable": True}, 6, "number_lte", "5"),
        ({"anyOf": [{"type": "integer", "maximum": 5}, {"type": "null"}]}, 6, "number_lte", "5"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "x", "any_of", "none"),
        ({"type": "string", "minLength": 2}, "a", "string_gte", "2"),
        ({"type": "string", "maxLength": 2}, "abc", "string_lte", "2"),
        ({"type": "string", "pattern": "^a"}, "b", "pattern", "^a"),
        ({"allOf": [{"$ref": "#/components/schemas/mode"}]}, "odd", "enum", '"fast", "slow"'),
        ({"type": "array", "items": {"type": "string"}}, ["a", 1], "invalid_type", "string"),
        ({"type": "string", "format": "uri"}, 7, "invalid_type", "string"),
        ({"format": "uri"}, 7, "invalid_type", "string"),
        ({"type": "integer"}, 1.5, "invalid_type", "integer"),
    ],
)
def test_each_problem_has_the_apis_word_and_names_the_limit(
    prop: dict[str, object], value: object, kind: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        schema({"x": prop}).check(json.dumps({"x": value}))
    (problem,) = caught.value.fields
    assert problem.field.startswith("input.x")
    assert problem.kind == kind
    assert words in problem.description
    assert caught.value.message == f"- {problem.field}: {problem.description}\n"


def test_a_missing_input_is_named_by_the_object() -> None:
    with pytest.raises(InvalidInput) as caught:
        schema({"x": {"type": "string"}}, required=["x"]).check("{}")
    (problem,) = caught.value.fields
    assert (problem.field, problem.description) == ("input", "x is required")


def test_a_secret_value_is_never_quoted() -> None:
    with pytest.raises(InvalidInput) as caught:
        schema({"key": {"type": "string", "maxLength": 3}}).check('{"key":"hunter2"}')
    assert "hunter2" not in str(caught.value.fields)


def test_nulls_of_optional_inputs_are_dropped_and_the_rest_stays_exact() -> None:
    checked = schema({"x": {"type": "string"}, "n": {}}).check(
        '{"x": null, "n": 12345678901234567890123}'
    )
    assert checked == '{"n":12345678901234567890123}'


def test_a_required_null_is_kept_where_the_schema_allows_it() -> None:
    nullable = schema({"x": {"type": "string", "nullable": True}}, required=["x"])
    assert nullable.check('{"x":null}') == '{"x":null}'


def test_a_good_input_stays_byte_for_byte() -> None:
    text = '{"a":1.0,"b":"\\u00e9"}'
    assert schema({"a": {}, "b": {}}).check(text) == text


def test_inputs_may_be_called_like_schema_words() -> None:
    words = {"nullable": {"type": "boolean"}, "minimum": {"type": "integer", "minimum": 1}}
    named = schema({**words, "type": {"type": "string"}, "format": {"type": "string"}})
    assert named.check('{"nullable":true,"minimum":1,"type":"a","format":"uri"}')
    with pytest.raises(InvalidInput):
        named.check('{"minimum":0}')


def test_a_schema_without_properties_takes_anything() -> None:
    assert InputSchema("").check('{"any":[1]}') == '{"any":[1]}'
