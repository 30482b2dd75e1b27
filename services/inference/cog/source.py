"""The project's Python files as syntax trees: names, constants and classes are followed,
nothing is ever imported.
"""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.inference.cog.errors import CogProjectError

_FILE_SIZE_LIMIT_BYTES = 1024 * 1024
_FILE_COUNT_LIMIT = 200
_DEPTH_LIMIT = 50

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class NotConstant(Exception):
    """The value of an expression cannot be known without running the program."""


@dataclass(frozen=True, slots=True)
class External:
    """A name from outside of the project, dotted: typing.Optional, cog.Path, int."""

    name: str

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(slots=True)
class SourceFile:
    """One parsed file; `imports` maps a local name to (module, name in it or None for the
    module itself).
    """

    name: str
    definitions: dict[str, ast.ClassDef | FunctionNode] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Definition:
    """A class, function or constant of the project and the file whose names it uses."""

    file: SourceFile
    node: ast.ClassDef | FunctionNode | ast.expr


Target = Definition | External


class SourceTree:
    def __init__(self, project_dir: Path) -> None:
        self._project_dir = project_dir.resolve()
        self._files: dict[str, SourceFile] = {}

    def load(self, name: str) -> SourceFile:
        """`name` is relative to the project. Raises CogProjectError with file and line."""
        if name not in self._files:
            if len(self._files) >= _FILE_COUNT_LIMIT:
                raise CogProjectError(
                    where=name,
                    problem=f"the schema would need more than {_FILE_COUNT_LIMIT} files",
                    fix="Define the types of inputs and outputs next to the model.",
                )
            self._files[name] = _parsed(self._project_dir, name)
        return self._files[name]

    def resolve(self, file: SourceFile, node: ast.expr, depth: int = 0) -> Target:
        """What a name or a dotted name stands for."""
        if depth > _DEPTH_LIMIT:
            raise error_at(file, node, "names refer to each other in a circle", "Break the circle.")
        if isinstance(node, ast.Name):
            return self._resolve_name(file, node.id, depth)
        if isinstance(node, ast.Attribute):
            return self._resolve_attribute(file, node, depth)
        raise NotConstant

    def _resolve_name(self, file: SourceFile, name: str, depth: int) -> Target:
        if name in file.definitions:
            return Definition(file, file.definitions[name])
        if name in file.constants:
            value = file.constants[name]
            if isinstance(value, ast.Name | ast.Attribute):
                return self.resolve(file, value, depth + 1)
            return Definition(file, value)
        if name not in file.imports:
            return External(name)
        module, member = file.imports[name]
        imported = self._module_file(module)
        if imported is None or member is None:
            return External(f"{module}.{member}" if member else module)
        return self._resolve_name(imported, member, depth + 1)

    def _resolve_attribute(self, file: SourceFile, node: ast.Attribute, depth: int) -> Target:
        if isinstance(node.value, ast.Name) and node.value.id in file.imports:
            module, member = file.imports[node.value.id]
            imported = self._module_file(f"{module}.{member}" if member else module)
            if imported is not None:
                return self._resolve_name(imported, node.attr, depth + 1)
        owner = self.resolve(file, node.value, depth + 1)
        if isinstance(owner, External):
            return External(f"{owner.name}.{node.attr}")
        if isinstance(owner.node, ast.ClassDef):
            return self._class_member(owner, node)
        raise NotConstant

    def _class_member(self, owner: Definition, node: ast.Attribute) -> Target:
        assert isinstance(owner.node, ast.ClassDef)
        for statement in owner.node.body:
            if isinstance(statement, FunctionNode) and statement.name == node.attr:
                return Definition(owner.file, statement)
            for name, value in _assigned(statement):
                if name == node.attr:
                    return Definition(owner.file, value)
        raise NotConstant

    def _module_file(self, module: str) -> SourceFile | None:
        relative = Path(*module.split("."))
        for candidate in (relative.with_suffix(".py"), relative / "__init__.py"):
            if module and (self._project_dir / candidate).is_file():
                return self.load(str(candidate))
        return None

    def constant(self, file: SourceFile, node: ast.expr, depth: int = 0) -> Any:
        """The value of an expression made of literals and module constants, or NotConstant."""
        if depth > _DEPTH_LIMIT:
            raise NotConstant

        def value_of(part: ast.expr) -> Any:
            return self.constant(file, part, depth + 1)

        match node:
            case ast.Constant(value=value):
                return value
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [value_of(item) for item in items]
            case ast.Dict(keys=keys, values=values):
                return {
                    value_of(_present(key)): value_of(item)
                    for key, item in zip(keys, values, strict=True)
                }
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -_number(value_of(operand))
            case ast.BinOp(left=left, op=operation, right=right):
                return _combined(operation, value_of(left), value_of(right))
            case ast.Call(func=function, args=arguments, keywords=[]):
                return _called(function, arguments, value_of)
            case ast.Name() | ast.Attribute():
                found = self.resolve(file, node, depth + 1)
                if isinstance(found, Definition) and isinstance(found.node, ast.expr):
                    return self.constant(found.file, found.node, depth + 1)
        raise NotConstant


def error_at(file: SourceFile, node: ast.AST, problem: str, fix: str) -> CogProjectError:
    return CogProjectError(
        where=f"{file.name}:{getattr(node, 'lineno', 1)}", problem=problem, fix=fix
    )


def _present(key: ast.expr | None) -> ast.expr:
    if key is None:
        raise NotConstant
    return key


def _number(value: Any) -> Any:
    if not isinstance(value, int | float):
        raise NotConstant
    return value


def _combined(operation: ast.operator, left: Any, right: Any) -> Any:
    function = _OPERATORS.get(type(operation))
    both_lists_or_texts = isinstance(operation, ast.Add) and type(left) is type(right)
    if function is None or not (both_lists_or_texts and isinstance(left, list | str)):
        if function is None or isinstance(left, list | str | dict):
            raise NotConstant
        left, right = _number(left), _number(right)
    try:
        return function(left, right)
    except ArithmeticError:
        raise NotConstant from None


def _called(
    function: ast.expr, arguments: list[ast.expr], value_of: Callable[[ast.expr], Any]
) -> Any:
    """list(X), sorted(X), tuple(X), X.keys() and X.values(): how choices are usually written."""
    if isinstance(function, ast.Name) and len(arguments) == 1:
        value = value_of(arguments[0])
        if function.id in ("list", "tuple", "set") and isinstance(value, list | dict):
            return list(value)
        if function.id == "sorted" and isinstance(value, list | dict):
            try:
                return sorted(value)
            except TypeError:
                raise NotConstant from None
    if isinstance(function, ast.Attribute) and not arguments:
        value = value_of(function.value)
        if isinstance(value, dict) and function.attr in ("keys", "values"):
            return list(value) if function.attr == "keys" else list(value.values())
    raise NotConstant


def _parsed(project_dir: Path, name: str) -> SourceFile:
    path = (project_dir / name).resolve()
    if not path.is_relative_to(project_dir) or not path.is_file():
        raise CogProjectError(
            where=name,
            problem="there is no such file in the project",
            fix="Correct the reference in cog.yaml, or add the file.",
        )
    content = path.read_bytes()
    if len(content) > _FILE_SIZE_LIMIT_BYTES:
        raise CogProjectError(
            where=name, problem="it is larger than 1 MiB", fix="Move data out of the source file."
        )
    try:
        tree = ast.parse(content, filename=name)
    except SyntaxError as error:
        raise CogProjectError(
            where=f"{name}:{error.lineno or 1}",
            problem=f"syntax error: {error.msg}",
            fix="Correct that line.",
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise CogProjectError(
            where=name, problem=f"it cannot be parsed: {error}", fix="Simplify the file."
        ) from None
    file = SourceFile(name)
    for statement in tree.body:
        _collect(file, statement)
    return file


def _collect(file: SourceFile, statement: ast.stmt) -> None:
    if isinstance(statement, ast.ClassDef | FunctionNode):
        file.definitions[statement.name] = statement
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            module = alias.name if alias.asname else alias.name.split(".")[0]
            file.imports[alias.asname or module] = (module, None)
    elif isinstance(statement, ast.ImportFrom):
        module = _absolute_module(file, statement)
        for alias in statement.names:
            file.imports[alias.asname or alias.name] = (module, alias.name)
    elif isinstance(statement, ast.If | ast.Try):
        # `if TYPE_CHECKING:` and `try: import x` blocks define names, too.
        for inner in statement.body:
            _collect(file, inner)
    else:
        file.constants.update(_assigned(statement))


def _absolute_module(file: SourceFile, statement: ast.ImportFrom) -> str:
    if statement.level == 0:
        return statement.module or ""
    folder = Path(file.name).parent.parts
    kept = folder[: len(folder) - (statement.level - 1)]
    return ".".join([*kept, *([statement.module] if statement.module else [])])


def _assigned(statement: ast.stmt) -> list[tuple[str, ast.expr]]:
    if isinstance(statement, ast.Assign):
        targets = [target for target in statement.targets if isinstance(target, ast.Name)]
        return [(target.id, statement.value) for target in targets]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [(statement.target.id, statement.value)] if statement.value else []
    return []
