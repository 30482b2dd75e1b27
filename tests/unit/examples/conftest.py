"""Loads the examples' modules, which import each other from their own folder as they do in Cog."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """`load("smollm2/llama")` imports examples/smollm2/llama.py."""
    loaded_before = set(sys.modules)

    def load_module(path: str) -> ModuleType:
        monkeypatch.syspath_prepend(str((EXAMPLES / path).parent))
        return importlib.import_module(Path(path).name)

    yield load_module
    for name in set(sys.modules) - loaded_before:
        origin = getattr(sys.modules[name], "__file__", None)
        if origin and Path(origin).is_relative_to(EXAMPLES):
            del sys.modules[name]


@pytest.fixture
def examples() -> Path:
    return EXAMPLES
