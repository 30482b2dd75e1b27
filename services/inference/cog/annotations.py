"""Type annotations of inputs and outputs as JSON schema, by cog's own rules."""

import ast
from dataclasses import dataclass
from typing import Any

from services.inference.cog.source import (
    Definition,
    External,
    NotConstant,
    SourceFile,
    SourceTree,
    error_at,
)

_PRIMITIVES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
}
_FILE: dict[str, Any] = {"type": "string", "format": "uri"}
_SECRET: dict[str, Any] = {
    "type": "string",
    "format": "password",
    "writeOnly": True,
    "x-cog-secret": True,
}
_OBJECT: dict[str, Any] = {"type": "object"}
_LISTS = frozenset({"list", "List"})
_DICTS = frozenset({"dict", "Dict"})
_ITERATORS = frozenset({"Iterator", "AsyncIterator", "Generator", "AsyncGenerator"})
_CONCATENATING = frozenset({"ConcatenateIterator", "AsyncConcatenateIterator"})
_MODEL_BASES = frozenset({"BaseModel", "TypedDict"})
_DEPTH_LIMIT = 20


@dataclass(frozen=True, slots=True)
class InputType:
    schema: dict[str, Any]
    is_optional: bool = False

    @property
    def is_file(self) -> bool:
        return "uri" in (self.schema.get("format"), self.schema.get("items", {}).get("format"))

    @property
    def is_secret(self) -> bool:
        return bool(self.schema.get("x-cog-secret"))


@dataclass(frozen=True, slots=True)
class _Form:
    """An annotation taken apart: the external name, or the project's class, and what stands in
    brackets.
    """

    name: str
    arguments: tuple[ast.expr, ...] = ()
    definition: Definition | None = None


class Annotations:
    def __init__(self, tree: SourceTree) -> None:
        self._tree = tree

    def input_type(self, file: SourceFile, node: ast.expr) -> InputType:
        members, is_optional = self._union(file, node)
        if len(members) == 1:
            return InputType(self._input_member(file, members[0]), is_optional)
        schemas = [self._input_member(file, member) for member in members]
        for member, schema in zip(members, schemas, strict=True):
            if schema.get("format") in ("uri", "password"):
                raise error_at(
                    file,
                    member,
                    "Path, File and Secret cannot be part of a union",
                    "Use two inputs, each of one type.",
                )
        if is_optional:
            schemas = [{**schema, "nullable": True} for schema in schemas]
        return InputType({"anyOf": schemas}, is_optional)

    def output_type(self, file: SourceFile, node: ast.expr) -> dict[str, Any]:
        members, is_optional = self._union(file, node)
        if is_optional or len(members) != 1:
            raise error_at(
                file,
                node,
                f"the output type `{ast.unparse(node)}` may not be optional or a union",
                "Return one type, for instance a BaseModel with optional fields.",
            )
        form = self._form(file, members[0])
        if form.name in _ITERATORS | _CONCATENATING:
            return self._iterator(file, members[0], form)
        return self._output_member(file, members[0], 0)

    def _iterator(self, file: SourceFile, node: ast.expr, form: _Form) -> dict[str, Any]:
        if not form.arguments:
            raise error_at(
                file,
                node,
                f"{form.name} does not say what it yields",
                f"Write {form.name}[str], for instance.",
            )
        items = self._output_member(file, form.arguments[0], 0)
        schema = {"type": "array", "items": items, "x-cog-array-type": "iterator"}
        if form.name in _CONCATENATING:
            if items != {"type": "string"}:
                raise error_at(
                    file, node, f"{form.name} can only yield str", f"Write {form.name}[str]."
                )
            schema["x-cog-array-display"] = "concatenate"
        return schema

    def _input_member(self, file: SourceFile, node: ast.expr) -> dict[str, Any]:
        form = self._form(file, node)
        if form.definition is not None and not self._is_model(form.definition, "TypedDict"):
            raise self._unsupported(file, node, "a class of the project")
        if form.definition is not None or form.name in _DICTS | {"Any"}:
            return dict(_OBJECT)
        simple = _simple_input(form.name)
        if simple is not None:
            return simple
        if form.name in _LISTS:
            return self._input_list(file, node, form)
        raise self._unsupported(file, node, f"`{ast.unparse(node)}`")

    def _input_list(self, file: SourceFile, node: ast.expr, form: _Form) -> dict[str, Any]:
        if not form.arguments:
            raise error_at(
                file, node, "the list does not say what it holds", "Write list[str], for instance."
            )
        members, is_optional = self._union(file, form.arguments[0])
        inner = self._form(file, members[0])
        if is_optional or len(members) > 1 or inner.name in _LISTS:
            raise error_at(
                file,
                node,
                f"`{ast.unparse(node)}`: list items may not be optional, unions or lists",
                "Use a list of one simple type.",
            )
        return {"type": "array", "items": self._input_member(file, members[0])}

    def _output_member(self, file: SourceFile, node: ast.expr, depth: int) -> dict[str, Any]:
        if depth > _DEPTH_LIMIT:
            raise error_at(
                file, node, "the output type contains itself", "Return a dict for recursive data."
            )
        form = self._form(file, node)
        if form.definition is not None:
            return self._model(form.definition, node, depth)
        if form.name in _LISTS and form.arguments:
            items = self._output_member(file, form.arguments[0], depth + 1)
            return {"type": "array", "items": items}
        if form.name in _DICTS:
            return self._output_dict(file, form, depth)
        if form.name in ("Any", "None"):
            return dict(_OBJECT)
        simple = _simple_input(form.name)
        if simple is not None:
            return simple
        raise error_at(
            file,
            node,
            f"the output type `{ast.unparse(node)}` has no schema",
            "Use str, int, float, bool, Path, list, dict or a BaseModel defined in the project.",
        )

    def _output_dict(self, file: SourceFile, form: _Form, depth: int) -> dict[str, Any]:
        if len(form.arguments) != 2:
            return dict(_OBJECT)
        values = self._output_member(file, form.arguments[1], depth + 1)
        return {"type": "object", "additionalProperties": values}

    def _model(self, definition: Definition, node: ast.expr, depth: int) -> dict[str, Any]:
        if not any(self._is_model(definition, base) for base in _MODEL_BASES):
            assert isinstance(definition.node, ast.ClassDef)
            raise error_at(
                definition.file,
                definition.node,
                f"{definition.node.name} is an output type but no BaseModel",
                "Derive it from cog.BaseModel.",
            )
        properties: dict[str, Any] = {}
        required: list[str] = []
        for owner in reversed(self.lineage(definition)):
            assert isinstance(owner.node, ast.ClassDef)
            for statement in owner.node.body:
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    self._model_field(owner, statement, properties, required, depth)
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        return {**schema, "required": required} if required else schema

    def _model_field(
        self,
        owner: Definition,
        statement: ast.AnnAssign,
        properties: dict[str, Any],
        required: list[str],
        depth: int,
    ) -> None:
        assert isinstance(statement.target, ast.Name)
        name = statement.target.id
        if name in ("model_config",) or name.startswith("_"):
            return
        members, is_optional = self._union(owner.file, statement.annotation)
        if len(members) != 1:
            raise error_at(
                owner.file, statement, f"the field {name} is a union", "Give it one type."
            )
        schema = self._output_member(owner.file, members[0], depth + 1)
        schema["title"] = title(name)
        if is_optional:
            schema["nullable"] = True
        elif statement.value is None and name not in required:
            required.append(name)
        properties[name] = dict(sorted(schema.items()))

    def lineage(self, definition: Definition) -> list[Definition]:
        """The class and those of its bases that the project defines, nearest first."""
        lineage: list[Definition] = []
        waiting = [definition]
        while waiting and len(lineage) < _DEPTH_LIMIT:
            current = waiting.pop(0)
            assert isinstance(current.node, ast.ClassDef)
            lineage.append(current)
            for base in current.node.bases:
                found = self._resolved(current.file, base)
                if isinstance(found, Definition) and isinstance(found.node, ast.ClassDef):
                    waiting.append(found)
        return lineage

    def _is_model(self, definition: Definition, base_name: str) -> bool:
        for owner in self.lineage(definition):
            assert isinstance(owner.node, ast.ClassDef)
            for base in owner.node.bases:
                found = self._resolved(owner.file, base)
                if isinstance(found, External) and found.last == base_name:
                    return True
        return False

    def _union(self, file: SourceFile, node: ast.expr) -> tuple[list[ast.expr], bool]:
        """The members without None, and whether None was one of them."""
        node = _unquoted(file, node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            parts = [node.left, node.right]
        else:
            form = self._form(file, node)
            if form.name == "Annotated" and form.arguments:
                return self._annotated(file, form)
            if form.name == "Optional":
                parts = [*form.arguments, ast.Constant(value=None)]
            elif form.name == "Union":
                parts = list(form.arguments)
            else:
                is_none = isinstance(node, ast.Constant) and node.value is None
                return ([], True) if is_none else ([node], False)
        members: list[ast.expr] = []
        is_optional = False
        for part in parts:
            inner, inner_optional = self._union(file, part)
            members += inner
            is_optional = is_optional or inner_optional
        return members, is_optional

    def _annotated(self, file: SourceFile, form: _Form) -> tuple[list[ast.expr], bool]:
        for marker in form.arguments[1:]:
            target = marker.func if isinstance(marker, ast.Call) else marker
            found = self._resolved(file, target)
            if isinstance(found, External) and found.last == "Opaque":
                return [ast.Name(id="dict", lineno=marker.lineno)], False
        return self._union(file, form.arguments[0])

    def _form(self, file: SourceFile, node: ast.expr) -> _Form:
        node = _unquoted(file, node)
        if isinstance(node, ast.Constant) and node.value is None:
            return _Form("None")
        arguments: tuple[ast.expr, ...] = ()
        if isinstance(node, ast.Subscript):
            inner = node.slice
            arguments = tuple(inner.elts) if isinstance(inner, ast.Tuple) else (inner,)
            node = node.value
        found = self._resolved(file, node)
        if isinstance(found, External):
            return _Form(found.last, arguments)
        if found is None:
            return _Form(ast.unparse(node), arguments)
        if isinstance(found.node, ast.ClassDef):
            return _Form(found.node.name, arguments, found)
        if isinstance(found.node, ast.expr) and not arguments:
            # A type alias: Prompts = list[str]
            return self._form(found.file, found.node)
        return _Form(ast.unparse(node), arguments)

    def _resolved(self, file: SourceFile, node: ast.expr) -> Definition | External | None:
        try:
            return self._tree.resolve(file, node)
        except NotConstant:
            return None

    def _unsupported(self, file: SourceFile, node: ast.expr, what: str) -> Exception:
        return error_at(
            file,
            node,
            f"{what} is not an input type",
            "Use str, int, float, bool, Path, File, Secret, dict or a list of one of them"
            " (for a fixed set of values: str with Input(choices=[...])).",
        )


def title(name: str) -> str:
    return name.replace("_", " ").title()


def _simple_input(name: str) -> dict[str, Any] | None:
    if name in _PRIMITIVES:
        return dict(_PRIMITIVES[name])
    if name in ("Path", "File"):
        return dict(_FILE)
    return dict(_SECRET) if name == "Secret" else None


def _unquoted(file: SourceFile, node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            inner = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            raise error_at(
                file, node, f"{node.value!r} is not a type", "Correct the annotation."
            ) from None
        return ast.copy_location(inner, node)
    return node
