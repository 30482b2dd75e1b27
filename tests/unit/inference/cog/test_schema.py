"""The schema of a model from its source text: every rule, and every refusal with its line."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

from services.inference.cog.config import read_config
from services.inference.cog.errors import CogProjectError
from services.inference.cog.openapi import Mode
from services.inference.cog.schema import ModelSchema, extract_schema

PROJECTS = Path(__file__).parents[3] / "models" / "cog"


def schema_of(tmp_path: Path, source: str, *, reference: str = "predict.py:P") -> ModelSchema:
    (tmp_path / "predict.py").write_text(textwrap.dedent(source))
    return extract_schema(tmp_path, reference)


def components(schema: ModelSchema) -> dict[str, Any]:
    found = schema.document["components"]["schemas"]
    assert isinstance(found, dict)
    return found


def input_of(tmp_path: Path, parameter: str, header: str = "") -> tuple[dict[str, Any], bool]:
    """The property `x` of a model with this one parameter, and whether it is required."""
    imports = "from cog import *\nfrom typing import *\nimport cog, typing\n"
    source = f"{imports}{header}\nclass P:\n    def predict(self, {parameter}) -> str: ...\n"
    (tmp_path / "predict.py").write_text(source)
    described = components(extract_schema(tmp_path, "predict.py:P"))["Input"]
    return described["properties"]["x"], "x" in described.get("required", [])


def output_of(tmp_path: Path, annotation: str, header: str = "") -> dict[str, Any]:
    imports = "from cog import *\nfrom typing import *\nimport cog\n"
    source = f"{imports}{header}\nclass P:\n    def predict(self) -> {annotation}: ...\n"
    (tmp_path / "predict.py").write_text(source)
    output = components(extract_schema(tmp_path, "predict.py:P"))["Output"]
    assert output.pop("title") == "Output"
    assert isinstance(output, dict)
    return output


INPUTS: dict[str, tuple[dict[str, Any], bool]] = {
    "x: str": ({"type": "string"}, True),
    "x: int = 3": ({"type": "integer", "default": 3}, False),
    "x: float = Input(default=1, ge=0, le=2)": (
        {"type": "number", "default": 1, "minimum": 0, "maximum": 2},
        False,
    ),
    "x: bool = False": ({"type": "boolean", "default": False}, False),
    "x: cog.Path": ({"type": "string", "format": "uri"}, True),
    "x: File": ({"type": "string", "format": "uri"}, True),
    "x: Secret": (
        {"type": "string", "format": "password", "writeOnly": True, "x-cog-secret": True},
        True,
    ),
    "x: Secret = Input(default=None)": (
        {
            "type": "string",
            "format": "password",
            "writeOnly": True,
            "x-cog-secret": True,
            "nullable": True,
        },
        False,
    ),
    "x: dict": ({"type": "object"}, True),
    "x: Dict[str, int]": ({"type": "object"}, True),
    "x: Any": ({"type": "object"}, True),
    "x: list[int]": ({"type": "array", "items": {"type": "integer"}}, True),
    "x: List[Path]": ({"type": "array", "items": {"type": "string", "format": "uri"}}, True),
    "x: Optional[str]": ({"type": "string", "nullable": True}, False),
    "x: typing.Optional[int] = None": ({"type": "integer", "nullable": True}, False),
    "x: str | None = Input(description='d')": (
        {"type": "string", "nullable": True, "description": "d"},
        False,
    ),
    "x: int | str": ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, True),
    "x: Union[int, str] = 1": (
        {"anyOf": [{"type": "integer"}, {"type": "string"}], "default": 1},
        False,
    ),
    "x: int | str | None": (
        {
            "anyOf": [
                {"type": "integer", "nullable": True},
                {"type": "string", "nullable": True},
            ],
            "nullable": True,
        },
        True,
    ),
    "x: 'str'": ({"type": "string"}, True),
    "x: Annotated[int, 'a note']": ({"type": "integer"}, True),
    "x: Annotated[list[list[int]], Opaque]": ({"type": "object"}, True),
    "x: int = Input(default=None)": ({"type": "integer"}, True),
    "x: str = Input(min_length=1, max_length=5, regex='^a')": (
        {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a"},
        True,
    ),
    "x: str = Input(deprecated=True)": ({"type": "string", "deprecated": True}, True),
    "x: Path = Input(accept='image/*')": (
        {"type": "string", "format": "uri", "x-cog-accept": "image/*"},
        True,
    ),
    "x: int = Input(default=-2 * 3 + 1)": ({"type": "integer", "default": -5}, False),
    "x: str = Input(default=compute())": ({"type": "string"}, True),
}


@pytest.mark.parametrize("parameter", INPUTS)
def test_an_input_becomes_its_property(tmp_path: Path, parameter: str) -> None:
    expected, is_required = INPUTS[parameter]
    described, required = input_of(tmp_path, parameter)
    assert described == {"title": "X", "x-order": 0, **expected}
    assert list(described) == sorted(described)
    assert required is is_required


def test_choices_become_a_component_of_their_own(tmp_path: Path) -> None:
    schema = schema_of(
        tmp_path,
        """
        from cog import BasePredictor, Input
        SIZES = {"s": 1, "l": 2}
        class P(BasePredictor):
            def predict(self, size: str = Input(choices=sorted(SIZES.keys()), default="l")) -> str:
                ...
        """,
    )
    assert components(schema)["Input"]["properties"]["size"] == {
        "allOf": [{"$ref": "#/components/schemas/size"}],
        "default": "l",
        "x-order": 0,
    }
    assert components(schema)["size"] == {
        "description": "An enumeration.",
        "enum": ["l", "s"],
        "title": "size",
        "type": "string",
    }


OUTPUTS = {
    "str": {"type": "string"},
    "Path": {"type": "string", "format": "uri"},
    "dict": {"type": "object"},
    "Any": {"type": "object"},
    "dict[str, int]": {"type": "object", "additionalProperties": {"type": "integer"}},
    "list[list[str]]": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "string"}},
    },
    "Iterator[Path]": {
        "type": "array",
        "items": {"type": "string", "format": "uri"},
        "x-cog-array-type": "iterator",
    },
    "AsyncIterator[int]": {
        "type": "array",
        "items": {"type": "integer"},
        "x-cog-array-type": "iterator",
    },
    "ConcatenateIterator[str]": {
        "type": "array",
        "items": {"type": "string"},
        "x-cog-array-type": "iterator",
        "x-cog-array-display": "concatenate",
    },
}


@pytest.mark.parametrize("annotation", OUTPUTS)
def test_a_return_type_becomes_the_output(tmp_path: Path, annotation: str) -> None:
    assert output_of(tmp_path, annotation) == OUTPUTS[annotation]


def test_a_model_output_is_followed_into_another_file(tmp_path: Path) -> None:
    package = tmp_path / "answers"
    package.mkdir()
    (package / "__init__.py").write_text("from .kinds import Answer\n")
    (package / "kinds.py").write_text(
        "import pydantic as pd\nfrom typing import Optional\n"
        "class Base(pd.BaseModel):\n    id: int\n"
        "class Answer(Base):\n    model_config = {}\n    words: list[str]\n"
        "    note: Optional[str] = None\n    score: float = 0.5\n"
    )
    header = "from answers import Answer as A"
    assert output_of(tmp_path, "A", header) == {
        "type": "object",
        "properties": {
            "id": {"title": "Id", "type": "integer"},
            "words": {"title": "Words", "type": "array", "items": {"type": "string"}},
            "note": {"title": "Note", "type": "string", "nullable": True},
            "score": {"title": "Score", "type": "number"},
        },
        "required": ["id", "words"],
    }


def test_a_shared_input_and_a_function_that_returns_one_are_followed(tmp_path: Path) -> None:
    schema = schema_of(
        tmp_path,
        """
        from cog import BasePredictor, Input
        class Shared:
            prompt = Input(description="shared")
            @staticmethod
            def steps():
                return Input(default=5, ge=1)
        class P(BasePredictor):
            def predict(self, prompt: str = Shared.prompt, steps: int = Shared.steps()) -> str: ...
        """,
    )
    properties = components(schema)["Input"]["properties"]
    assert properties["prompt"]["description"] == "shared"
    assert properties["steps"]["default"] == 5
    assert properties["steps"]["minimum"] == 1
    assert list(properties) == ["prompt", "steps"]


def test_a_method_may_be_inherited_from_another_file(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("class B:\n    def run(self, a: int) -> int: ...\n")
    schema = schema_of(tmp_path, "import base\nclass P(base.B): ...\n")
    assert components(schema)["Input"]["required"] == ["a"]


def test_a_function_may_be_the_target(tmp_path: Path) -> None:
    schema = schema_of(
        tmp_path, "def f(a: str, *, b: int = 2) -> str: ...", reference="predict.py:f"
    )
    assert list(components(schema)["Input"]["properties"]) == ["a", "b"]


def test_concurrency_and_streaming_are_read_from_the_decorators(tmp_path: Path) -> None:
    schema = schema_of(
        tmp_path,
        """
        import cog
        class P(cog.BaseRunner):
            @cog.streaming
            @cog.concurrent(max=8)
            async def run(self, a: str) -> cog.AsyncConcatenateIterator[str]: ...
        """,
    )
    assert schema.concurrency == 8
    assert (schema.is_async, schema.is_iterator, schema.is_streaming) == (True, True, True)
    assert schema.document["paths"]["/predictions"]["post"]["x-cog-streaming"] is True


def test_a_training_function_has_its_own_document(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def train(steps: int = 3) -> str: ...\n")
    schema = extract_schema(tmp_path, "train.py:train", mode=Mode.TRAIN)
    assert "TrainingInput" in components(schema)
    assert "/trainings" in schema.document["paths"]


def test_the_model_is_never_imported(tmp_path: Path) -> None:
    source = 'raise SystemExit("imported")\nclass P:\n    def predict(self) -> str: ...\n'
    schema = schema_of(tmp_path, source)
    assert components(schema)["Input"]["properties"] == {}


METHOD = "from cog import *\nfrom typing import *\nclass P:\n    def predict(self, {}) -> str: ..."
RETURN = "from cog import *\nfrom typing import *\nclass P:\n    def predict(self) -> {}: ..."
REFUSALS = {
    "syntax": ("class P(:\n", "predict.py:1: syntax error", "Correct"),
    "no class": ("class Q: ...\n", "no class or function `P`", "cog.yaml"),
    "no method": ("class P: ...\n", "predict.py:1: P has no method run or predict", "run("),
    "two methods": (
        "class P:\n    def run(self) -> str: ...\n    def predict(self) -> str: ...\n",
        "predict.py:3: the class has both",
        "Keep one",
    ),
    "no annotation": (METHOD.format("x"), "predict.py:4: parameter `x`: it has no type", "x"),
    "no return type": ("class P:\n    def predict(self): ...\n", "predict.py:2: predict", "-> str"),
    "variadic": (METHOD.format("**more: str"), "`more`: *args and **kwargs", "Name every"),
    "low default": (
        METHOD.format("x: int = Input(default=0, ge=1)"),
        "`x`: the default 0 is not a valid input: it is below ge=1",
        "Change the default",
    ),
    "default type": (METHOD.format("x: int = 'a'"), "the default 'a'", "Change the default"),
    "bool for int": (METHOD.format("x: int = True"), "not of type integer", "Change"),
    "default choice": (
        METHOD.format("x: str = Input(default='c', choices=['a'])"),
        "not one of the choices",
        "Change",
    ),
    "default regex": (
        METHOD.format("x: str = Input(default='c', regex='^a')"),
        "does not match regex='^a'",
        "Change",
    ),
    "bad regex": (METHOD.format("x: str = Input(regex='(')"), "regex is not valid", "Correct"),
    "unknown choices": (
        METHOD.format("x: str = Input(choices=load())"),
        "the value of choices is not known",
        "literal",
    ),
    "empty choices": (METHOD.format("x: str = Input(choices=[])"), "not empty", "Add"),
    "mixed choices": (METHOD.format("x: str = Input(choices=['a', 1])"), "choice 1", "Correct"),
    "computed default": (METHOD.format("x: str = load()"), "the default `load()`", "literal"),
    "factory": (METHOD.format("x: str = Input(default_factory=f)"), "default_factory", "constant"),
    "unknown keyword": (METHOD.format("x: int = Input(gt=1)"), "no keyword `gt`", "choices"),
    "accept on str": (METHOD.format("x: str = Input(accept='a')"), "accept=", "Remove"),
    "literal": (METHOD.format("x: Literal['a']"), "`Literal['a']` is not an input", "choices"),
    "tuple": (METHOD.format("x: tuple[int, int]"), "is not an input type", "Use str"),
    "nested list": (METHOD.format("x: list[list[int]]"), "list items may not be", "one simple"),
    "bare list": (METHOD.format("x: list"), "what it holds", "list[str]"),
    "union with file": (METHOD.format("x: Path | str"), "cannot be part of a union", "two inputs"),
    "foreign class": (METHOD.format("x: numpy.ndarray"), "is not an input type", "Use str"),
    "optional output": (RETURN.format("Optional[str]"), "may not be optional", "BaseModel"),
    "union output": (RETURN.format("int | str"), "may not be optional or a union", "BaseModel"),
    "foreign output": (RETURN.format("np.ndarray"), "has no schema", "BaseModel"),
    "concatenate int": (RETURN.format("ConcatenateIterator[int]"), "can only yield str", "[str]"),
    "bare iterator": (RETURN.format("Iterator"), "does not say what it yields", "Iterator[str]"),
    "plain class output": (
        "class A:\n    x: int\nclass P:\n    def predict(self) -> A: ...\n",
        "predict.py:1: A is an output type but no BaseModel",
        "cog.BaseModel",
    ),
    "recursive output": (
        "from cog import BaseModel\nclass A(BaseModel):\n    x: 'list[A]'\n"
        "class P:\n    def predict(self) -> A: ...\n",
        "contains itself",
        "dict",
    ),
    "streaming value": (
        "from cog import *\nclass P:\n    @streaming\n    def run(self) -> str: ...\n",
        "predict.py:3: @streaming is only",
        "Iterator",
    ),
    "concurrent sync": (
        "from cog import *\nclass P:\n    @concurrent(max=2)\n    def run(self) -> str: ...\n",
        "needs an async function",
        "async def run",
    ),
    "concurrent variable": (
        "import cog\nclass P:\n    @cog.concurrent(max=N)\n    async def run(self) -> str: ...\n",
        "a literal number",
        "max=4",
    ),
    "circular names": ("a = b\nb = a\nclass P:\n    def run(self) -> a: ...\n", "circle", "Break"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_mistake_is_refused_with_its_line_and_its_fix(tmp_path: Path, name: str) -> None:
    source, problem, fix = REFUSALS[name]
    (tmp_path / "predict.py").write_text(source)
    with pytest.raises(CogProjectError) as refused:
        extract_schema(tmp_path, "predict.py:P")
    assert problem in str(refused.value)
    assert fix in refused.value.fix


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CogProjectError, match="no such file in the project"):
        extract_schema(tmp_path, "predict.py:P")


def test_a_file_outside_of_the_project_is_not_followed(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (tmp_path / "outside.py").write_text("class P:\n    def run(self) -> str: ...\n")
    (project / "predict.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(CogProjectError, match="no such file in the project"):
        extract_schema(project, "predict.py:P")


@pytest.mark.parametrize("source", ["(" * 5000, "x = " + "-" * 100_000 + "1", "\x00"])
def test_a_source_that_breaks_the_parser_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "predict.py").write_text(source + "\nclass P:\n    def run(self) -> str: ...\n")
    with pytest.raises(CogProjectError, match=r"^predict\.py"):
        extract_schema(tmp_path, "predict.py:P")


@pytest.mark.parametrize(
    ("project", "message"),
    [
        ("unknown_key", "Did you mean `build.python_packages`?"),
        ("bad_default", "predict.py:7: parameter `steps`: the default 0 is not a valid input"),
    ],
)
def test_a_project_with_a_mistake_is_refused_as_a_whole(project: str, message: str) -> None:
    with pytest.raises(CogProjectError) as refused:
        extract_schema(PROJECTS / project, read_config(PROJECTS / project).predict or "")
    assert message in str(refused.value)
