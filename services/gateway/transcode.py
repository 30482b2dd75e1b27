"""HTTP requests to messages and messages to HTTP answers, compiled once per route."""

import json
import re
from collections.abc import Mapping
from json import decoder
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.chassis.errors import FieldViolation, InvalidInput
from services.gateway import blocking
from services.gateway.json_codec import (
    DURATION,
    JSON,
    BadValue,
    convert_text,
    field_encoder,
    message_decoder,
    message_encoder,
)
from services.gateway.routes import Route

QUERY_FIELD_COUNT_MAX = 50

_SPACE = re.compile(r"[ \t\n\r]*")
# Numbers stay text: only the positions of the values are wanted. (Not in the type stubs.)
_SCAN_STRING: Any = decoder.scanstring  # type: ignore[attr-defined]
_SCAN: Any = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).scan_once  # type: ignore[attr-defined]


class Binding:
    """How one route's requests become messages, and its messages become answers."""

    def __init__(self, route: Route) -> None:
        assert route.method is not None
        self.route = route
        self._request_class = GetMessageClass(route.method.input_type)
        self._decoder = message_decoder(route.method.input_type)
        fields = self._decoder.fields
        self._has_wait = _is_duration(fields.get("wait"))
        self._has_cancel_after = _is_duration(fields.get("cancel_after"))
        self._has_last_event_id = "last_event_id" in fields
        self._encode, self._page = _response_encoder(route)

    @property
    def json_fields(self) -> frozenset[str]:
        """The request's free-form JSON fields."""
        return self._decoder.json_fields

    def request(
        self,
        *,
        variables: Mapping[str, str],
        query: str,
        headers: Mapping[bytes, bytes],
        body: bytes,
    ) -> Any:
        """The request message; InvalidInput names every field that is wrong."""
        message = self._request_class()
        violations: list[FieldViolation] = []
        if self.route.body and body:
            values, texts = _parse_body(body, self.route.body, self._decoder.json_fields)
            violations += self._decoder.fill(message, values, texts)
        if query:
            violations += self._fill_texts(message, _query_values(query))
        if variables:
            violations += self._fill_texts(message, variables)
        if violations:
            raise InvalidInput("the request does not fit", fields=violations)
        self._fill_from_headers(message, headers)
        return message

    def answer(self, message: Any, *, base_url: str, path: str, query: str) -> Any:
        """What orjson serializes for the caller."""
        if self._page is not None:
            return self._page.answer(message, base_url, path, query)
        return self._encode(message, base_url)

    def _fill_texts(self, message: Message, texts: Mapping[str, str]) -> list[FieldViolation]:
        values: dict[str, Any] = {}
        for name, text in texts.items():
            field = self._decoder.fields.get(name)
            if field is None or field.is_repeated:
                continue
            try:
                values[name] = convert_text(field, text, name)
            except BadValue as error:
                return [error.violation]
        return self._decoder.fill(message, values, {})

    def _fill_from_headers(self, message: Any, headers: Mapping[bytes, bytes]) -> None:
        if self._has_wait:
            wait_s = blocking.wait_of(headers)
            if wait_s is None and message.HasField("wait"):
                sent = message.wait.seconds + message.wait.nanos / 1e9
                wait_s = blocking.clamp_wait(sent, headers)
            if wait_s is not None:
                message.wait.FromMilliseconds(int(wait_s * 1000))
        if self._has_cancel_after and b"cancel-after" in headers:
            text = headers[b"cancel-after"].decode("latin-1")
            message.cancel_after.seconds = blocking.parse_cancel_after(text)
        if self._has_last_event_id and b"last-event-id" in headers:
            message.last_event_id = headers[b"last-event-id"].decode("latin-1")


class Page:
    """A list answer as {next, previous, results}."""

    def __init__(self, items: FieldDescriptor, *, has_previous: bool) -> None:
        self._name = items.name
        self._encode_items = field_encoder(items)
        self._has_previous = has_previous

    def answer(self, message: Any, base_url: str, path: str, query: str) -> dict[str, Any]:
        """The page; next and previous are absolute and carry the filters."""
        previous = message.previous_page_token if self._has_previous else ""
        return {
            "next": _page_url(base_url, path, query, message.next_page_token),
            "previous": _page_url(base_url, path, query, previous),
            "results": self._encode_items(getattr(message, self._name), base_url),
        }


def _response_encoder(route: Route) -> tuple[Any, Page | None]:
    assert route.method is not None
    output = route.method.output_type
    if route.response_body:
        name = route.response_body
        encode = field_encoder(output.fields_by_name[name])
        return (lambda message, base_url: encode(getattr(message, name), base_url)), None
    return message_encoder(output), _page_of(output)


def _page_of(output: Descriptor) -> Page | None:
    lists = [field for field in output.fields if field.is_repeated]
    if "next_page_token" not in output.fields_by_name or len(lists) != 1:
        return None
    return Page(lists[0], has_previous="previous_page_token" in output.fields_by_name)


def _page_url(base_url: str, path: str, query: str, cursor: str) -> str | None:
    if not cursor:
        return None
    kept = [pair for pair in parse_qsl(query) if pair[0] not in ("cursor", "page_token")]
    return f"{base_url}{path}?{urlencode([*kept, ('cursor', cursor)])}"


def _query_values(query: str) -> dict[str, str]:
    try:
        values = dict(parse_qsl(query, max_num_fields=QUERY_FIELD_COUNT_MAX))
    except ValueError:
        raise InvalidInput(f"the query has more than {QUERY_FIELD_COUNT_MAX} parameters") from None
    if cursor := values.pop("cursor", ""):
        values["page_token"] = cursor
    return values


def _is_duration(field: FieldDescriptor | None) -> bool:
    return bool(field and field.message_type and field.message_type.full_name == DURATION)


def _parse_body(
    body: bytes, body_field: str, json_fields: frozenset[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body is not JSON: {error}", reason="MALFORMED_BODY") from None
    if body_field != "*":
        return {body_field: value}, {body_field: body.decode().strip()}
    if not isinstance(value, dict):
        raise InvalidInput("The body must be a JSON object.", reason="MALFORMED_BODY")
    wanted = json_fields & value.keys()
    return value, member_texts(body.decode(), wanted) if wanted else {}


def member_texts(text: str, names: frozenset[str]) -> dict[str, str]:
    """The JSON text of some members of a valid JSON object, untouched."""
    texts: dict[str, str] = {}
    position = _skip(text, 0) + 1
    while True:
        position = _skip(text, position)
        if text[position] == "}":
            return texts
        if text[position] == ",":
            position = _skip(text, position + 1)
        name, position = _SCAN_STRING(text, position + 1)
        start = _skip(text, _skip(text, position) + 1)
        try:
            _, position = _SCAN(text, start)
        except RecursionError:
            raise InvalidInput(f"{name} is nested too deeply", reason="MALFORMED_BODY") from None
        if name in names:
            texts[name] = text[start:position]


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match
    return match.end()


class JsonFinder:
    """Finds the free-form JSON values inside messages of one type."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._direct = [field for field in descriptor.fields if _is_json(field)]
        self._nested = [
            (field.name, field.is_repeated, JsonFinder(field.message_type))
            for field in descriptor.fields
            if field.message_type is not None
            and not _is_json(field)
            and not field.message_type.GetOptions().map_entry
            and _holds_json(field.message_type)
        ]

    def find(self, message: Any, marker: str) -> list[tuple[FieldDescriptor, Any]]:
        """Field and value of each free-form JSON whose text holds the marker."""
        found = []
        for field in self._direct:
            value = getattr(message, field.name)
            found += [
                (field, item)
                for item in (value if field.is_repeated else (value,))
                if marker in item.text
            ]
        for name, is_repeated, finder in self._nested:
            if not is_repeated and not message.HasField(name):
                continue
            value = getattr(message, name)
            for item in value if is_repeated else (value,):
                found += finder.find(item, marker)
        return found


def _is_json(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == JSON


def _holds_json(descriptor: Descriptor) -> bool:
    return any(
        _is_json(field) or (field.message_type is not None and _holds_json(field.message_type))
        for field in descriptor.fields
    )
