"""cog.yaml as a tree of texts that remembers its line numbers; every error names the key and
its line.
"""

import difflib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.inference.cog.errors import CogProjectError

FILE_SIZE_LIMIT_BYTES = 64 * 1024
_NODE_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Document:
    """The parsed file. Paths are dotted (`build.gpu`); values are texts, lists or mappings of
    them.
    """

    root: dict[str, Any]
    lines: dict[str, int]

    def error(self, path: str, problem: str, fix: str) -> CogProjectError:
        line = self.lines.get(path)
        where = f"cog.yaml:{line}: {path}" if line else f"cog.yaml: {path}"
        return CogProjectError(where=where, problem=problem, fix=fix)

    def has(self, path: str) -> bool:
        return self._find(path) not in (None, "", [], {})

    def text(self, path: str) -> str | None:
        value = self._find(path)
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            raise self.error(
                path, "it must be a single value", "Write it on one line after the key."
            )
        return value

    def items(self, path: str) -> list[Any]:
        value = self._find(path)
        if value is None or value == "":
            return []
        if not isinstance(value, list):
            raise self.error(path, "it must be a list", "Write one `- item` per line.")
        return value

    def texts(self, path: str) -> tuple[str, ...]:
        for index, item in enumerate(self.items(path)):
            if not isinstance(item, str):
                raise self.error(f"{path}[{index}]", "it must be text", "Write it in quotes.")
        return tuple(self.items(path))

    def flag(self, path: str) -> bool:
        value = (self.text(path) or "false").lower()
        if value not in ("true", "false"):
            raise self.error(path, f"{value!r} is neither true nor false", "Write true or false.")
        return value == "true"

    def refuse_unknown_keys(
        self, section: str, known: Set[str], *, elsewhere: Mapping[str, Set[str]]
    ) -> None:
        value = self._find(section) if section else self.root
        if value is None or value == "":
            return
        if not isinstance(value, dict):
            raise self.error(section, "it must be a mapping", "Write `key: value` lines below it.")
        for key in value:
            if key not in known:
                path = f"{section}.{key}" if section else key
                raise self.error(
                    path, "this key is not known", _advice(key, section, known, elsewhere)
                )

    def _find(self, path: str) -> Any:
        value: Any = self.root
        for part in path.split("."):
            if not isinstance(value, dict):
                return None
            value = value.get(part)
        return value


def load_document(path: Path) -> Document:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CogProjectError(
            where="cog.yaml", problem="the project has none", fix="Add one that names the model."
        ) from None
    if len(content) > FILE_SIZE_LIMIT_BYTES:
        raise CogProjectError(
            where="cog.yaml",
            problem=f"it has {len(content)} bytes, more than {FILE_SIZE_LIMIT_BYTES}",
            fix="Remove what does not belong into it.",
        )
    try:
        node = yaml.compose(content, Loader=yaml.BaseLoader)
        return _document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CogProjectError(
            where=f"cog.yaml:{line}",
            problem=f"not valid YAML: {error.problem}",
            fix="Correct that line.",
        ) from None
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise CogProjectError(
            where="cog.yaml", problem=f"not valid YAML: {error}", fix="Correct the file."
        ) from None


def _document(node: yaml.Node | None) -> Document:
    if node is None:
        return Document(root={}, lines={})
    document = Document(root={}, lines={})
    if not isinstance(node, yaml.MappingNode):
        raise document.error("(top level)", "it must be a mapping", "Write `key: value` lines.")
    document.root.update(_Reader(document).read(node, ""))
    return document


class _Reader:
    """Turns nodes into plain values; counts them, because aliases can repeat one node without
    end.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._node_count = 0

    def read(self, node: yaml.Node, path: str) -> Any:
        self._node_count += 1
        if self._node_count > _NODE_LIMIT:
            raise self._document.error(path, f"more than {_NODE_LIMIT} values", "Use no aliases.")
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, f"{path}[{i}]") for i, item in enumerate(node.value)]
        return node.value

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            key_path = f"{path}.{key}" if path else key
            self._document.lines[key_path] = key_node.start_mark.line + 1
            if key in values:
                raise self._document.error(key_path, "it stands there twice", "Keep one of them.")
            values[key] = self.read(value_node, key_path)
        return values


def _advice(key: str, section: str, known: Set[str], elsewhere: Mapping[str, Set[str]]) -> str:
    for other, keys in elsewhere.items():
        if key in keys:
            return f"Move it below `{other}:`." if other else "Move it to the top level."
    prefix = f"{section}." if section else ""
    near = difflib.get_close_matches(key, sorted(known), n=1)
    if near:
        return f"Did you mean `{prefix}{near[0]}`?"
    return f"Remove it; the known keys are {', '.join(sorted(known))}."
