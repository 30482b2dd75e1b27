"""Messages to and from JSON, by closures compiled once per message type.

Field names stay as in the proto; enums lose their linted prefix; free-form JSON passes as text.
"""

from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from reprise.wire.v1 import options_pb2

from services.chassis.errors import FieldViolation

# (message or value, public base URL) -> what orjson serializes.
Encode = Callable[[Any, str], Any]
# (value, JSON text of the value where it is known, field path) -> what the message field takes.
Convert = Callable[[Any, str | None, str], Any]

JSON = "reprise.wire.v1.Json"
TIMESTAMP = "google.protobuf.Timestamp"
DURATION = "google.protobuf.Duration"

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
# google.protobuf.Duration's own bound.
_DURATION_MAX_S = 315_576_000_000


class BadValue(Exception):
    """A JSON value that a field cannot take."""

    def __init__(self, field: str, description: str, kind: str = "invalid_type") -> None:
        super().__init__(description)
        self.violation = FieldViolation(field=field, description=description, kind=kind)


# --- message -> JSON ---------------------------------------------------------------------------


@cache
def message_encoder(descriptor: Descriptor) -> Encode:
    """The encoder of one message type; unset messages and optional fields become null."""
    special = _SPECIAL_ENCODERS.get(descriptor.full_name)
    if special is not None:
        return special
    fields = [
        (field.name, field.has_presence, _field_encoder(field)) for field in descriptor.fields
    ]

    def encode(message: Any, base_url: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, is_optional, inner in fields:
            if is_optional and not message.HasField(name):
                result[name] = None
            elif inner is None:
                result[name] = getattr(message, name)
            else:
                result[name] = inner(getattr(message, name), base_url)
        return result

    return encode


def field_encoder(field: FieldDescriptor) -> Encode:
    """The encoder of one field's value."""
    return _field_encoder(field) or (lambda value, _base_url: value)


def enum_names(enum: EnumDescriptor) -> dict[int, str | None]:
    """Number to wire word: PREDICTION_STATUS_STARTING is starting; unspecified is null."""
    prefix = _enum_prefix(enum)
    return {
        value.number: value.name.removeprefix(prefix).lower() if value.number else None
        for value in enum.values
    }


def format_timestamp(timestamp: Any) -> str:
    """ISO 8601 in UTC with microseconds and Z."""
    moment = datetime.fromtimestamp(timestamp.seconds, UTC)
    return f"{moment.isoformat()[:19]}.{timestamp.nanos // 1000:06d}Z"


def _enum_prefix(enum: EnumDescriptor) -> str:
    # buf's lint makes the zero value <PREFIX>_UNSPECIFIED.
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


def _field_encoder(field: FieldDescriptor) -> Encode | None:
    if _is_map(field):
        assert field.message_type is not None
        return _map_encoder(field)
    inner = _value_encoder(field)
    if not field.is_repeated:
        return inner
    if inner is None:
        return lambda values, _base_url: list(values)
    return lambda values, base_url: [inner(value, base_url) for value in values]


def _value_encoder(field: FieldDescriptor) -> Encode | None:
    if field.message_type is not None:
        descriptor = field.message_type
        if special := _SPECIAL_ENCODERS.get(descriptor.full_name):
            return special
        # Looked up at the first use: message types may contain themselves.
        return lambda value, base_url: message_encoder(descriptor)(value, base_url)
    if field.enum_type is not None:
        names = enum_names(field.enum_type)
        return lambda value, _base_url: names.get(value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value, _base_url: b64encode(value).decode()
    if field.GetOptions().Extensions[options_pb2.public_path]:
        return lambda value, base_url: _absolute(value, base_url)
    return None


def _map_encoder(field: FieldDescriptor) -> Encode:
    assert field.message_type is not None
    inner = _value_encoder(field.message_type.fields_by_name["value"])
    if field.GetOptions().Extensions[options_pb2.public_path]:
        return lambda values, base_url: {
            key: _absolute(value, base_url) for key, value in values.items()
        }
    if inner is None:
        return lambda values, _base_url: dict(values)
    return lambda values, base_url: {key: inner(value, base_url) for key, value in values.items()}


def _absolute(path: str, base_url: str) -> str:
    return base_url + path if path.startswith("/") else path


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _encode_duration(value: Any, _base_url: str) -> int | float:
    whole: int = value.seconds
    return whole + value.nanos / 1e9 if value.nanos else whole


_SPECIAL_ENCODERS: dict[str, Encode] = {
    JSON: lambda value, _base_url: orjson.Fragment(value.text) if value.text else None,
    TIMESTAMP: lambda value, _base_url: format_timestamp(value),
    DURATION: _encode_duration,
}


# --- JSON -> message ---------------------------------------------------------------------------


class MessageDecoder:
    """Fills messages of one type from JSON objects, and collects what is wrong with them."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.fields = {field.name: field for field in descriptor.fields}
        self._setters = {field.name: _setter(field) for field in descriptor.fields}
        self.json_fields = frozenset(
            field.name
            for field in descriptor.fields
            if field.message_type is not None and field.message_type.full_name == JSON
        )

    def fill(
        self,
        message: Message,
        values: dict[str, Any],
        texts: dict[str, str],
        *,
        path: str = "",
        ignore_unknown: bool = False,
    ) -> list[FieldViolation]:
        """Sets each value; `texts` holds the JSON text of free-form fields."""
        violations: list[FieldViolation] = []
        for name, value in values.items():
            setter = self._setters.get(name)
            if setter is None:
                if not ignore_unknown:
                    violations.append(_unknown(path + name, self.fields))
                continue
            if value is None:
                continue
            try:
                setter(message, value, texts.get(name), path + name)
            except BadValue as error:
                violations.append(error.violation)
        return violations


@cache
def message_decoder(descriptor: Descriptor) -> MessageDecoder:
    """The decoder of one message type."""
    return MessageDecoder(descriptor)


def _unknown(name: str, known: dict[str, FieldDescriptor]) -> FieldViolation:
    text = f"{name[:100]} is not allowed; allowed are {', '.join(known)}"
    return FieldViolation(
        field=name[:100], description=text, kind="additional_property_not_allowed"
    )


def _setter(field: FieldDescriptor) -> Callable[[Any, Any, str | None, str], None]:
    name, convert = field.name, _converter(field)
    if _is_map(field):
        return _map_setter(field)
    if field.is_repeated:
        return _list_setter(field)
    if field.message_type is None:

        def set_scalar(message: Any, value: Any, text: str | None, path: str) -> None:
            try:
                setattr(message, name, convert(value, text, path))
            except ValueError:  # A lone surrogate has no UTF-8.
                raise BadValue(path, "must be text that UTF-8 can hold") from None

        return set_scalar

    def set_message(message: Any, value: Any, text: str | None, path: str) -> None:
        getattr(message, name).CopyFrom(convert(value, text, path))

    return set_message


def _list_setter(field: FieldDescriptor) -> Callable[[Any, Any, str | None, str], None]:
    name, convert = field.name, _converter(field)

    def set_list(message: Any, value: Any, _text: str | None, path: str) -> None:
        if not isinstance(value, list):
            raise BadValue(path, "must be an array")
        items = [convert(item, None, f"{path}.{index}") for index, item in enumerate(value)]
        try:
            getattr(message, name).extend(items)
        except ValueError:
            raise BadValue(path, "must hold text that UTF-8 can hold") from None

    return set_list


def _map_setter(field: FieldDescriptor) -> Callable[[Any, Any, str | None, str], None]:
    assert field.message_type is not None
    name, convert = field.name, _converter(field.message_type.fields_by_name["value"])

    def set_map(message: Any, value: Any, _text: str | None, path: str) -> None:
        if not isinstance(value, dict):
            raise BadValue(path, "must be an object")
        target = getattr(message, name)
        for key, item in value.items():
            target[key] = convert(item, None, f"{path}.{key}")

    return set_map


def _converter(field: FieldDescriptor) -> Convert:
    if field.message_type is not None:
        return _message_converter(field.message_type)
    if field.enum_type is not None:
        return _enum_converter(field.enum_type)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _to_boolean
    if field.cpp_type in _INTEGERS:
        return _integer_converter(*_INTEGERS[field.cpp_type])
    if field.cpp_type in _FLOATS:
        return _to_number
    return _to_string


def _message_converter(descriptor: Descriptor) -> Convert:
    from google.protobuf.message_factory import GetMessageClass

    message_class = GetMessageClass(descriptor)
    if descriptor.full_name == JSON:
        return lambda value, text, _path: message_class(
            text=text if text is not None else orjson.dumps(value).decode()
        )
    if descriptor.full_name == TIMESTAMP:
        return lambda value, _text, path: _to_timestamp(message_class(), value, path)
    if descriptor.full_name == DURATION:
        return lambda value, _text, path: _to_duration(message_class(), value, path)

    def convert(value: Any, _text: str | None, path: str) -> Message:
        if not isinstance(value, dict):
            raise BadValue(path, "must be an object")
        message = message_class()
        decoder = message_decoder(descriptor)
        for violation in decoder.fill(message, value, {}, path=path + "."):
            raise BadValue(violation.field, violation.description, violation.kind)
        return message

    return convert


def _to_string(value: Any, _text: str | None, path: str) -> str:
    if not isinstance(value, str):
        raise BadValue(path, "must be a string")
    return value


def _to_boolean(value: Any, _text: str | None, path: str) -> bool:
    if not isinstance(value, bool):
        raise BadValue(path, "must be true or false")
    return value


def _to_number(value: Any, _text: str | None, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValue(path, "must be a number")
    return float(value)


def _integer_converter(lowest: int, highest: int) -> Convert:
    def convert(value: Any, _text: str | None, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue(path, "must be an integer")
        if not lowest <= value <= highest:
            raise BadValue(path, f"must be from {lowest} to {highest}", "number_lte")
        return value

    return convert


def _enum_converter(enum: EnumDescriptor) -> Convert:
    numbers = {name: number for number, name in enum_names(enum).items() if name}

    def convert(value: Any, _text: str | None, path: str) -> int:
        if not isinstance(value, str) or value not in numbers:
            raise BadValue(path, f"must be one of {', '.join(numbers)}", "enum")
        return numbers[value]

    return convert


def _to_timestamp(timestamp: Any, value: Any, path: str) -> Any:
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        timestamp.FromDatetime(moment)
    except (TypeError, ValueError, OverflowError):
        raise BadValue(path, "must be an ISO 8601 time such as 2026-01-31T12:00:00Z") from None
    return timestamp


def _to_duration(duration: Any, value: Any, path: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadValue(path, "must be a number of seconds")
    if not 0 <= value <= _DURATION_MAX_S:
        raise BadValue(path, f"must be from 0 to {_DURATION_MAX_S} seconds", "number_lte")
    duration.FromTimedelta(timedelta(seconds=value))
    return duration


def convert_text(field: FieldDescriptor, text: str, path: str) -> Any:
    """A query parameter or path variable as the JSON value that the field's decoder takes."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text.lower() not in ("true", "false"):
            raise BadValue(path, "must be true or false")
        return text.lower() == "true"
    if field.cpp_type in _INTEGERS:
        if not text.removeprefix("-").isdecimal() or len(text) > 20:
            raise BadValue(path, "must be an integer")
        return int(text)
    is_number = field.cpp_type in _FLOATS or (
        field.message_type is not None and field.message_type.full_name == DURATION
    )
    if is_number:
        try:
            return float(text)
        except ValueError:
            raise BadValue(path, "must be a number") from None
    return text
