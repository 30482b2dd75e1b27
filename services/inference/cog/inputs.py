"""One parameter of a model's function as one property of the input schema."""

import ast
import re
from dataclasses import dataclass
from typing import Any

from services.inference.cog.annotations import Annotations, InputType, title
from services.inference.cog.errors import CogProjectError
from services.inference.cog.source import (
    Definition,
    External,
    FunctionNode,
    NotConstant,
    SourceFile,
    SourceTree,
    error_at,
)

_PLAIN_KEYS = {
    "description": "description",
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "max_length": "maxLength",
    "regex": "pattern",
}
_KEYWORDS = frozenset({*_PLAIN_KEYS, "default", "choices", "deprecated", "accept"})
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    file: SourceFile
    argument: ast.arg
    default: ast.expr | None

    def error(self, problem: str, fix: str) -> CogProjectError:
        return error_at(
            self.file, self.argument, f"parameter `{self.argument.arg}`: {problem}", fix
        )


@dataclass(frozen=True, slots=True)
class InputProperty:
    """`enumeration` is the component that the property refers to when it has choices."""

    name: str
    schema: dict[str, Any]
    is_required: bool
    enumeration: dict[str, Any] | None = None


class Inputs:
    def __init__(self, tree: SourceTree, annotations: Annotations) -> None:
        self._tree = tree
        self._annotations = annotations

    def property_of(self, parameter: Parameter, order: int) -> InputProperty:
        annotation = parameter.argument.annotation
        if annotation is None:
            name = parameter.argument.arg
            raise parameter.error("it has no type", f"Write `{name}: str`, for instance.")
        kind = self._annotations.input_type(parameter.file, annotation)
        keywords = self._keywords(parameter)
        schema: dict[str, Any] = {"title": title(parameter.argument.arg), "x-order": order}
        schema |= kind.schema
        schema |= self._constraints(parameter, keywords, kind)
        enumeration = self._enumeration(parameter, keywords, kind)
        is_optional = kind.is_optional
        has_default = "default" in keywords and keywords["default"] is not None
        if "default" in keywords and keywords["default"] is None:
            # Only a Secret becomes optional by `default=None`; any other plain type stays required.
            is_optional = is_optional or kind.is_secret
        if has_default:
            schema["default"] = keywords["default"]
            _check_default(parameter, schema, enumeration)
        if is_optional:
            schema["nullable"] = True
        is_required = not has_default and not is_optional
        if "anyOf" in kind.schema and "default" not in keywords:
            is_required = True
        if enumeration is not None:
            schema.pop("type")
            schema.pop("title")
            reference = f"#/components/schemas/{parameter.argument.arg}"
            schema["allOf"] = [{"$ref": reference}]
        return InputProperty(
            name=parameter.argument.arg,
            schema=dict(sorted(schema.items())),
            is_required=is_required,
            enumeration=enumeration,
        )

    def _keywords(self, parameter: Parameter) -> dict[str, Any]:
        if parameter.default is None:
            return {}
        call = self._input_call(parameter.file, parameter.default, depth=0)
        if call is None:
            return {"default": self._plain_default(parameter)}
        file, node = call
        values: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg == "default_factory":
                raise parameter.error(
                    "Input(default_factory=...) is not supported", "Use default=..., a constant."
                )
            if keyword.arg not in _KEYWORDS:
                raise parameter.error(
                    f"Input() has no keyword `{keyword.arg}`",
                    f"The keywords are {', '.join(sorted(_KEYWORDS))}.",
                )
            values[keyword.arg] = self._keyword_value(parameter, file, keyword)
        return values

    def _keyword_value(self, parameter: Parameter, file: SourceFile, keyword: ast.keyword) -> Any:
        try:
            return self._tree.constant(file, keyword.value)
        except NotConstant:
            if keyword.arg in ("choices", "accept", "regex", "ge", "le"):
                raise parameter.error(
                    f"the value of {keyword.arg} is not known before the model runs",
                    "Write it as a literal or a module constant.",
                ) from None
            return None

    def _plain_default(self, parameter: Parameter) -> Any:
        assert parameter.default is not None
        try:
            return self._tree.constant(parameter.file, parameter.default)
        except NotConstant:
            raise parameter.error(
                f"the default `{ast.unparse(parameter.default)}` is not known before a run",
                "Write it as a literal or a module constant.",
            ) from None

    def _input_call(
        self, file: SourceFile, node: ast.expr, depth: int
    ) -> tuple[SourceFile, ast.Call] | None:
        """The `Input(...)` behind a default: itself, a shared attribute, or what a function
        returns.
        """
        if depth > 10:
            return None
        target = node.func if isinstance(node, ast.Call) else node
        try:
            found = self._tree.resolve(file, target)
        except NotConstant:
            return None
        if isinstance(found, External):
            is_input = found.last == "Input" and isinstance(node, ast.Call)
            return (file, node) if is_input and isinstance(node, ast.Call) else None
        if isinstance(found.node, FunctionNode) and isinstance(node, ast.Call):
            returned = _returned(found)
            return self._input_call(found.file, returned, depth + 1) if returned else None
        if isinstance(found.node, ast.expr):
            return self._input_call(found.file, found.node, depth + 1)
        return None

    def _constraints(
        self, parameter: Parameter, keywords: dict[str, Any], kind: InputType
    ) -> dict[str, Any]:
        schema = {
            key: keywords[keyword]
            for keyword, key in _PLAIN_KEYS.items()
            if keywords.get(keyword) is not None
        }
        if "accept" in keywords:
            if not kind.is_file:
                raise parameter.error("accept= is only for Path and File", "Remove it.")
            schema["x-cog-accept"] = keywords["accept"]
        if keywords.get("deprecated"):
            schema["deprecated"] = True
        if "pattern" in schema:
            try:
                re.compile(schema["pattern"])
            except re.error as error:
                raise parameter.error(
                    f"regex is not valid: {error}", "Correct the expression."
                ) from None
        return schema

    def _enumeration(
        self, parameter: Parameter, keywords: dict[str, Any], kind: InputType
    ) -> dict[str, Any] | None:
        choices = keywords.get("choices")
        if choices is None:
            return None
        kind_name = kind.schema.get("type", "")
        if kind_name not in ("string", "integer", "number") or kind.is_file:
            raise parameter.error(
                "choices are for str, int and float", "Change the type, or remove the choices."
            )
        if not isinstance(choices, list) or not choices:
            raise parameter.error("choices must be a list that is not empty", "Add the choices.")
        for choice in choices:
            if not _has_type(choice, kind_name):
                raise parameter.error(
                    f"the choice {choice!r} is not of type {kind_name}", "Correct the choice."
                )
        return {
            "description": "An enumeration.",
            "enum": choices,
            "title": parameter.argument.arg,
            "type": kind_name,
        }


def _returned(definition: Definition) -> ast.expr | None:
    assert isinstance(definition.node, FunctionNode)
    last = definition.node.body[-1]
    return last.value if isinstance(last, ast.Return) else None


def _has_type(value: Any, kind_name: str) -> bool:
    if isinstance(value, bool) and kind_name != "boolean":
        return False
    return isinstance(value, _PYTHON_TYPES.get(kind_name, (object,)))


def _check_default(
    parameter: Parameter, schema: dict[str, Any], enumeration: dict[str, Any] | None
) -> None:
    default = schema["default"]
    problem = None
    if "type" in schema and not _has_type(default, schema["type"]):
        problem = f"it is not of type {schema['type']}"
    elif enumeration is not None and default not in enumeration["enum"]:
        problem = "it is not one of the choices"
    elif isinstance(default, int | float):
        if default < schema.get("minimum", default):
            problem = f"it is below ge={schema['minimum']}"
        elif default > schema.get("maximum", default):
            problem = f"it is above le={schema['maximum']}"
    elif isinstance(default, str):
        problem = _text_problem(default, schema)
    if problem is not None:
        raise parameter.error(
            f"the default {default!r} is not a valid input: {problem}",
            "Change the default or the limit.",
        )


def _text_problem(default: str, schema: dict[str, Any]) -> str | None:
    if len(default) < schema.get("minLength", 0):
        return f"it is shorter than min_length={schema['minLength']}"
    if len(default) > schema.get("maxLength", len(default)):
        return f"it is longer than max_length={schema['maxLength']}"
    if "pattern" in schema and not re.search(schema["pattern"], default):
        return f"it does not match regex={schema['pattern']!r}"
    return None
