"""Every example folder is complete, pinned, attributed and small."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from examples import prepare

EXAMPLES = Path(prepare.__file__).parent
MODELS = sorted(
    path.parent for path in EXAMPLES.glob("*/README.md") if path.parent.name != "images"
)
COG_MODELS = [model for model in MODELS if (model / "cog.yaml").exists()]


def _name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("model", COG_MODELS, ids=_name)
def test_requirements_are_pinned_to_exact_versions(model: Path) -> None:
    config = yaml.safe_load((model / "cog.yaml").read_text())
    requirements = config["build"].get("python_requirements")
    assert (requirements is not None) == (model / "requirements.txt").exists()
    if requirements:
        lines = (model / requirements).read_text().splitlines()
        assert lines
        assert all(re.fullmatch(r"[a-z0-9-]+==\d+(\.\d+)+", line) for line in lines)


@pytest.mark.parametrize("model", COG_MODELS, ids=_name)
def test_the_cog_file_names_a_class_that_exists(model: Path) -> None:
    file, name = yaml.safe_load((model / "cog.yaml").read_text())["run"].split(":")
    tree = ast.parse((model / file).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    methods = [node.name for node in ast.walk(classes[0]) if hasattr(node, "name")]
    assert "run" in methods


@pytest.mark.parametrize("model", MODELS, ids=_name)
def test_the_readme_says_how_to_push(model: Path) -> None:
    readme = (model / "README.md").read_text()
    assert f"reprise push local/{model.name} examples/{model.name}" in readme
    needs_weights = f"examples/prepare.py {model.name}" in readme
    assert needs_weights == (model.name in prepare.WEIGHTS)


@pytest.mark.parametrize("name", prepare.WEIGHTS)
def test_weights_are_attributed_with_package_and_hash(name: str) -> None:
    weights, attribution = prepare.WEIGHTS[name], (EXAMPLES / "ATTRIBUTION.md").read_text()
    assert f"`{weights.package}` {weights.version}" in attribution
    assert weights.sha256 in attribution


def test_all_downloads_together_stay_below_130_megabytes() -> None:
    assert sum(weights.size_mb for weights in prepare.WEIGHTS.values()) < 130


def test_the_classifier_has_a_thousand_different_labels() -> None:
    labels = (EXAMPLES / "image-classifier" / "labels.txt").read_text().splitlines()
    assert len(set(labels)) == len(labels) == 1000
    assert (labels[285], labels[967]) == ("Egyptian cat", "espresso")


def test_the_sample_pictures_are_small_and_attributed() -> None:
    attribution = (EXAMPLES / "ATTRIBUTION.md").read_text()
    pictures = list((EXAMPLES / "images").glob("*.jpg"))
    assert sum(picture.stat().st_size for picture in pictures) < 300_000
    assert all(f"images/{picture.name}" in attribution for picture in pictures)
