"""Folders and engines for the tests of inference_core."""

from pathlib import Path

import pytest

from inference_core import EngineCache


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")
