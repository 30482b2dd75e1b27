"""The OpenAPI document of a model, derived from its source text by the rules of `cog build`;
nothing is imported.

`extract_schema(project_dir, "predict.py:Predictor")` raises CogProjectError with file, line,
parameter and fix.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.inference.cog.annotations import Annotations
from services.inference.cog.config import CONCURRENCY_LIMIT, DEFAULT_COG_VERSION
from services.inference.cog.errors import CogProjectError
from services.inference.cog.inputs import Inputs, Parameter
from services.inference.cog.openapi import Mode, Shape, build_document
from services.inference.cog.source import (
    Definition,
    External,
    FunctionNode,
    NotConstant,
    SourceFile,
    SourceTree,
    error_at,
)

_INPUT_COUNT_LIMIT = 256


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """`concurrency` is the author's number of slots; `is_iterator` models yield output while
    they run.
    """

    document: dict[str, Any]
    concurrency: int
    is_iterator: bool
    is_async: bool
    is_streaming: bool


def extract_schema(
    project_dir: Path,
    reference: str,
    *,
    mode: Mode = Mode.PREDICT,
    cog_version: str = DEFAULT_COG_VERSION,
) -> ModelSchema:
    """Only syntax is read: a model that cannot be imported still has a schema."""
    file_name, _, target_name = reference.partition(":")
    tree = SourceTree(project_dir)
    try:
        return _Extraction(tree, mode, cog_version).extract(file_name, target_name)
    except RecursionError:
        raise CogProjectError(
            where=file_name, problem="its types are nested too deeply", fix="Simplify them."
        ) from None


class _Extraction:
    def __init__(self, tree: SourceTree, mode: Mode, cog_version: str) -> None:
        self._tree = tree
        self._mode = mode
        self._cog_version = cog_version
        self._annotations = Annotations(tree)
        self._inputs = Inputs(tree, self._annotations)

    def extract(self, file_name: str, target_name: str) -> ModelSchema:
        target = self._target(self._tree.load(file_name), target_name)
        assert isinstance(target.node, FunctionNode)
        function, file = target.node, target.file
        inputs = [
            self._inputs.property_of(parameter, order)
            for order, parameter in enumerate(_parameters(target))
        ]
        output = self._output(file, function)
        is_iterator = output.get("x-cog-array-type") == "iterator"
        is_async = isinstance(function, ast.AsyncFunctionDef)
        is_streaming = self._is_streaming(file, function, is_iterator=is_iterator)
        shape = Shape(inputs=tuple(inputs), output=output, is_streaming=is_streaming)
        return ModelSchema(
            document=build_document(shape, self._mode, self._cog_version),
            concurrency=self._concurrency(file, function, is_async=is_async),
            is_iterator=is_iterator,
            is_async=is_async,
            is_streaming=is_streaming,
        )

    def _target(self, file: SourceFile, name: str) -> Definition:
        """The function that runs: the named one, or the class's run or predict (train)."""
        try:
            found = self._tree.resolve(file, ast.Name(id=name))
        except NotConstant:
            found = External(name)
        if isinstance(found, External) or isinstance(found.node, ast.expr):
            raise CogProjectError(
                where=file.name,
                problem=f"it defines no class or function `{name}`",
                fix="Correct the name in cog.yaml.",
            )
        if isinstance(found.node, FunctionNode):
            return found
        return self._method(found)

    def _method(self, definition: Definition) -> Definition:
        assert isinstance(definition.node, ast.ClassDef)
        names = ("train",) if self._mode is Mode.TRAIN else ("run", "predict")
        for owner in self._annotations.lineage(definition):
            assert isinstance(owner.node, ast.ClassDef)
            methods = {
                statement.name: statement
                for statement in owner.node.body
                if isinstance(statement, FunctionNode)
            }
            found = [methods[name] for name in names if name in methods]
            if len(found) > 1:
                raise error_at(
                    owner.file, found[1], "the class has both run and predict", "Keep one of them."
                )
            if found:
                return Definition(owner.file, found[0])
        raise error_at(
            definition.file,
            definition.node,
            f"{definition.node.name} has no method {' or '.join(names)}",
            f"Add `def {names[0]}(self, ...)`.",
        )

    def _output(self, file: SourceFile, function: FunctionNode) -> dict[str, Any]:
        if function.returns is None:
            raise error_at(
                file,
                function,
                f"{function.name} does not say what it returns",
                "Add a return type: `-> str`, for instance.",
            )
        return self._annotations.output_type(file, function.returns)

    def _is_streaming(self, file: SourceFile, function: FunctionNode, *, is_iterator: bool) -> bool:
        decorator = self._decorator(file, function, "streaming")
        if decorator is not None and not is_iterator:
            raise error_at(
                file,
                decorator,
                "@streaming is only for models that yield their output",
                "Return Iterator[...], or remove the decorator.",
            )
        return decorator is not None

    def _concurrency(self, file: SourceFile, function: FunctionNode, *, is_async: bool) -> int:
        decorator = self._decorator(file, function, "concurrent")
        if decorator is None:
            return 1
        value = _literal_maximum(decorator)
        if value is None or not 1 <= value <= CONCURRENCY_LIMIT:
            raise error_at(
                file,
                decorator,
                "@concurrent needs max=N, a literal number",
                f"Write @concurrent(max=4), at most {CONCURRENCY_LIMIT}.",
            )
        if value > 1 and not is_async:
            raise error_at(
                file,
                decorator,
                f"@concurrent(max={value}) needs an async function",
                f"Write `async def {function.name}`, or remove the decorator.",
            )
        return value

    def _decorator(self, file: SourceFile, function: FunctionNode, name: str) -> ast.expr | None:
        for decorator in function.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            try:
                found = self._tree.resolve(file, target)
            except NotConstant:
                continue
            if isinstance(found, External) and found.name in (name, f"cog.{name}"):
                return decorator
        return None


def _literal_maximum(decorator: ast.expr) -> int | None:
    if not isinstance(decorator, ast.Call):
        return None
    for keyword in decorator.keywords:
        value = keyword.value
        if keyword.arg == "max" and isinstance(value, ast.Constant) and type(value.value) is int:
            return value.value
    return None


def _parameters(target: Definition) -> list[Parameter]:
    assert isinstance(target.node, FunctionNode)
    arguments = target.node.args
    for variadic in (arguments.vararg, arguments.kwarg):
        if variadic is not None:
            raise error_at(
                target.file,
                variadic,
                f"parameter `{variadic.arg}`: *args and **kwargs have no schema",
                "Name every input.",
            )
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * missing, *arguments.defaults]
    pairs = list(zip(positional, defaults, strict=True))
    if pairs and pairs[0][0].arg == "self":
        pairs = pairs[1:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    if len(pairs) > _INPUT_COUNT_LIMIT:
        raise error_at(
            target.file, target.node, f"more than {_INPUT_COUNT_LIMIT} inputs", "Use a dict input."
        )
    return [Parameter(target.file, argument, default) for argument, default in pairs]
