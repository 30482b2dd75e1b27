"""Puts inputs and output into the OpenAPI document that a cog server serves."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.inference.cog.inputs import InputProperty


class Mode(StrEnum):
    PREDICT = "predict"
    TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Shape:
    inputs: tuple[InputProperty, ...]
    output: dict[str, Any]
    is_streaming: bool


@dataclass(frozen=True, slots=True)
class _Names:
    route: str
    noun: str
    input: str
    output: str


_NAMES = {
    Mode.PREDICT: _Names(route="predictions", noun="Prediction", input="Input", output="Output"),
    Mode.TRAIN: _Names(
        route="trainings", noun="Training", input="TrainingInput", output="TrainingOutput"
    ),
}


def build_document(shape: Shape, mode: Mode, cog_version: str) -> dict[str, Any]:
    names = _NAMES[mode]
    return {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": cog_version},
        "paths": _paths(names, is_streaming=shape.is_streaming),
        "components": {"schemas": _components(names, shape)},
    }


def _components(names: _Names, shape: Shape) -> dict[str, Any]:
    enumerations = {
        item.name: item.enumeration for item in shape.inputs if item.enumeration is not None
    }
    input_schema: dict[str, Any] = {
        "title": names.input,
        "type": "object",
        "properties": {item.name: item.schema for item in shape.inputs},
    }
    required = [item.name for item in shape.inputs if item.is_required]
    if required:
        input_schema["required"] = required
    return {
        **enumerations,
        names.input: input_schema,
        names.output: dict(sorted({**shape.output, "title": names.output}.items())),
        f"{names.noun}Request": _request(names),
        f"{names.noun}Response": _response(names),
        "Status": {
            "title": "Status",
            "description": "An enumeration.",
            "type": "string",
            "enum": ["starting", "processing", "succeeded", "canceled", "failed"],
        },
        "HTTPValidationError": _object(
            "HTTPValidationError",
            {"detail": {"title": "Detail", "type": "array", "items": _ref("ValidationError")}},
        ),
        "ValidationError": {
            **_object(
                "ValidationError",
                {
                    "loc": {
                        "title": "Location",
                        "type": "array",
                        "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                    },
                    "msg": {"title": "Message", "type": "string"},
                    "type": {"title": "Error Type", "type": "string"},
                },
            ),
            "required": ["loc", "msg", "type"],
        },
    }


def _request(names: _Names) -> dict[str, Any]:
    events = {"type": "string", "enum": ["start", "output", "logs", "completed"]}
    return _object(
        f"{names.noun}Request",
        {
            "id": {"title": "Id", "type": "string"},
            "input": _ref(names.input),
            "context": {
                "title": "Context",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "webhook": {"title": "Webhook", "type": "string", "format": "uri"},
            "webhook_events_filter": {
                "title": "Webhook Events Filter",
                "type": "array",
                "items": events,
            },
        },
    )


def _response(names: _Names) -> dict[str, Any]:
    return _object(
        f"{names.noun}Response",
        {
            "id": {"title": "Id", "type": "string"},
            "input": _ref(names.input),
            "output": _ref(names.output),
            "status": _ref("Status"),
            "error": {"title": "Error", "type": "string"},
            "logs": {"title": "Logs", "type": "string", "default": ""},
            "metrics": {"title": "Metrics", "type": "object"},
        },
    )


def _paths(names: _Names, *, is_streaming: bool) -> dict[str, Any]:
    identifier = f"{names.noun.lower()}_id"
    post: dict[str, Any] = {
        "summary": f"Run one {names.noun.lower()}",
        "requestBody": {"content": _json(_ref(f"{names.noun}Request"))},
        "responses": {
            "200": _answer(_ref(f"{names.noun}Response")),
            "422": _answer(_ref("HTTPValidationError")),
        },
    }
    if is_streaming:
        post["x-cog-streaming"] = True
    cancel = {
        "summary": f"Cancel one {names.noun.lower()}",
        "parameters": [
            {"name": identifier, "in": "path", "required": True, "schema": {"type": "string"}}
        ],
        "responses": {"200": _answer({}), "404": _answer({})},
    }
    return {
        "/": {"get": {"summary": "Root", "responses": {"200": _answer({})}}},
        "/health-check": {"get": {"summary": "Healthcheck", "responses": {"200": _answer({})}}},
        f"/{names.route}": {"post": post},
        f"/{names.route}/{{{identifier}}}/cancel": {"post": cancel},
    }


def _object(title: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answer(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Answer", "content": _json(schema)}
