"""Writes docs/reference.md from the code: routes, events, settings, commands."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor
from reprise.wire.v1 import options_pb2

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference.md"
SERVICES = ("gateway", "scheduler", "billing", "storage", "inference")


def proto_files() -> Iterator[FileDescriptor]:
    """Descriptors of our protos, in the order of their paths."""
    for path in sorted((ROOT / "protos" / "reprise").rglob("*.proto")):
        module = ".".join(path.relative_to(ROOT / "protos").with_suffix("").parts) + "_pb2"
        yield importlib.import_module(module).DESCRIPTOR


def methods() -> Iterator[MethodDescriptor]:
    for file in proto_files():
        for service in file.services_by_name.values():
            yield from service.methods


def routes(method: MethodDescriptor) -> Iterator[str]:
    """The REST routes of a method, as "GET /path"."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    for binding in [rule, *rule.additional_bindings]:
        verb = binding.WhichOneof("pattern")
        if verb:
            yield f"{verb.upper()} {getattr(binding, verb)}"


def events() -> Iterator[tuple[Descriptor, str]]:
    """Messages with a NATS subject."""
    for file in proto_files():
        for message in file.message_types_by_name.values():
            subject = message.GetOptions().Extensions[options_pb2.subject]
            if subject:
                yield message, subject


def settings_rows(service: str) -> Iterator[str]:
    module = importlib.import_module(f"services.{service}.settings")
    [settings_type] = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and "env_prefix" in value.model_config
    ]
    prefix = settings_type.model_config["env_prefix"]
    for name, field in settings_type.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`"
        yield f"| `{prefix}{name.upper()}` | {default} | {one_line(field.description or '')} |"


def one_line(text: str) -> str:
    return " ".join(text.split())


def render() -> str:
    """The whole page."""
    lines = [
        "# Reference",
        "",
        "Written from the code by `make reference`; a test compares it.",
        "",
        "## Calls",
        "",
        "All of these work over gRPC on the public port; those with a route also over HTTP.",
        "",
        "| rpc | HTTP | who may call |",
        "| --- | --- | --- |",
    ]
    for method in methods():
        access = method.GetOptions().Extensions[options_pb2.access]
        if access == options_pb2.ACCESS_UNSPECIFIED:
            continue
        name = f"{method.containing_service.full_name}/{method.name}"
        who = options_pb2.Access.Name(access).removeprefix("ACCESS_").lower()
        http = "<br>".join(f"`{route}`" for route in routes(method))
        lines.append(f"| `{name}` | {http} | {who} |")
    lines += ["", "## Events", "", "| event | NATS subject | kept |", "| --- | --- | --- |"]
    for message, subject in events():
        is_durable = message.GetOptions().Extensions[options_pb2.durable]
        kept = "by JetStream" if is_durable else "no"
        lines.append(f"| `{message.full_name}` | `{subject}` | {kept} |")
    for service in SERVICES:
        lines += ["", f"## Settings of {service}", "", "| variable | default | meaning |"]
        lines += ["| --- | --- | --- |", *settings_rows(service)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(render())
    sys.stdout.write(f"wrote {REFERENCE}\n")
