"""cog.yaml: what is read, and what is refused with the key, the line and the fix."""

from pathlib import Path

import pytest

from services.inference.cog.config import CogConfig, Host, read_config, refuse_on_host
from services.inference.cog.errors import CogProjectError

HOST = Host(python_versions=("3.11.7", "3.12.1"))


def config_of(tmp_path: Path, text: str) -> CogConfig:
    (tmp_path / "cog.yaml").write_text(text)
    return read_config(tmp_path)


def test_scalars_are_read_as_text_so_that_3_10_stays_3_10(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, 'build:\n  python_version: 3.10\npredict: "predict.py:Predictor"\n'
    )
    assert config.python_version == "3.10"
    assert config.predict == "predict.py:Predictor"


def test_run_is_the_new_name_of_predict(tmp_path: Path) -> None:
    assert config_of(tmp_path, "run: model/main.py:shout\n").predict == "model/main.py:shout"


def test_a_full_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    config = config_of(
        tmp_path,
        "build:\n  python_version: '3.12'\n  python_requirements: requirements.txt\n  gpu: true\n"
        "  sdk_version: 0.21.0\nrun: a.py:A\ntrain: t.py:train\nconcurrency:\n  max: 8\n"
        "environment:\n  - MODE=fast=er\n  - EMPTY=\nimage: r8.im/a/b\n",
    )
    assert config == CogConfig(
        predict="a.py:A",
        train="t.py:train",
        python_version="3.12",
        requirements_file="requirements.txt",
        cog_version="0.21.0",
        gpu=True,
        environment={"MODE": "fast=er", "EMPTY": ""},
        concurrency_max=8,
        warnings=("image is ignored: there is no container image here",),
    )


REFUSALS = {
    "unknown top key": ("predicts: a.py:A\n", "cog.yaml:1: predicts: ", "`predict`"),
    "unknown build key": (
        "build:\n  python_version: '3.11'\n  python_package: [a]\nrun: a.py:A\n",
        "cog.yaml:3: build.python_package: this key is not known",
        "Did you mean `build.python_packages`?",
    ),
    "misplaced key": ("gpu: true\nrun: a.py:A\n", "gpu: this key", "Move it below `build:`."),
    "unknown concurrency key": (
        "run: a.py:A\nconcurrency:\n  maximum: 2\n",
        "concurrency.maximum",
        "`concurrency.max`",
    ),
    "run and predict": ("run: a.py:A\npredict: a.py:A\n", "run: `run` and `predict`", "Keep one"),
    "no model": ("build:\n  python_version: '3.11'\n", "there is no model", "predict.py:Predictor"),
    "empty file": ("", "there is no model", "Add"),
    "a list": ("- a\n", "must be a mapping", "key: value"),
    "bad yaml": ("run: [a\n", "cog.yaml:2: not valid YAML", "Correct"),
    "double key": ("run: a.py:A\nrun: b.py:B\n", "cog.yaml:2: run: it stands there twice", "Keep"),
    "absolute reference": ("run: /a.py:A\n", "is not a reference", "file.py:Name"),
    "parent reference": ("run: ../a.py:A\n", "is not a reference", "file.py:Name"),
    "reference without name": ("run: a.py\n", "is not a reference", "file.py:Name"),
    "python 2": ("build:\n  python_version: '2.7'\nrun: a.py:A\n", "'2.7'", '"3.11"'),
    "no python version": ("build:\n  gpu: true\nrun: a.py:A\n", "build.python_version", "Add"),
    "old cog": (
        "build:\n  python_version: '3.11'\n  sdk_version: 0.16.11\nrun: a.py:A\n",
        "build.sdk_version: 0.16.11 is older than 0.17.0",
        "Remove",
    ),
    "platform variable": (
        "run: a.py:A\nenvironment:\n  - LD_LIBRARY_PATH=/x\n",
        "cog.yaml:3: environment[0]: LD_LIBRARY_PATH belongs to the platform",
        "Remove",
    ),
    "reserved prefix": ("run: a.py:A\nenvironment: [CUDA_X=1]\n", "CUDA_X belongs", "Remove"),
    "double variable": ("run: a.py:A\nenvironment: [A=1, A=2]\n", "set twice", "Keep"),
    "no value": ("run: a.py:A\nenvironment: [A]\n", "is not NAME=value", "NAME=value"),
    "zero slots": ("run: a.py:A\nconcurrency:\n  max: 0\n", "concurrency.max", "number"),
    "slots on 3.10": (
        "build:\n  python_version: 3.10\nrun: a.py:A\nconcurrency:\n  max: 2\n",
        "needs Python 3.11",
        "python_version",
    ),
    "build command": (
        "build:\n  python_version: '3.11'\n  run:\n    - make install\nrun: a.py:A\n",
        'build.run[0]: "make install" would run on the host',
        "Python package",
    ),
    "old build command": (
        "build:\n  python_version: '3.11'\n  pre_install: [x]\nrun: a.py:A\n",
        "build.pre_install[0]",
        "setup()",
    ),
    "weights": ("run: a.py:A\nweights: [{name: a}]\n", "weights: ", "Ship the files"),
    "packages twice": (
        "build:\n  python_version: '3.11'\n  python_packages: [a]\n"
        "  python_requirements: r.txt\nrun: a.py:A\n",
        "python_packages",
        "Keep one",
    ),
    "requirements outside": (
        "build:\n  python_version: '3.11'\n  python_requirements: ../r.txt\nrun: a.py:A\n",
        "there is no file '../r.txt'",
        "Add it",
    ),
    "gpu maybe": ("build:\n  python_version: '3.11'\n  gpu: maybe\nrun: a.py:A\n", "maybe", "true"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_mistake_is_refused_with_its_key_and_its_fix(tmp_path: Path, name: str) -> None:
    text, where, fix = REFUSALS[name]
    with pytest.raises(CogProjectError) as refused:
        config_of(tmp_path, text)
    assert where in str(refused.value)
    assert fix in str(refused.value)


def test_a_project_without_cog_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CogProjectError, match="the project has none"):
        read_config(tmp_path)


def test_an_oversized_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CogProjectError, match="more than 65536"):
        config_of(tmp_path, "#" * 70_000)


@pytest.mark.parametrize("text", ["[" * 2_000, "a: " * 3000])
def test_a_deeply_nested_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CogProjectError):
        config_of(tmp_path, text)


def test_aliases_cannot_grow_without_end(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    with pytest.raises(CogProjectError, match="more than 10000 values"):
        config_of(tmp_path, "\n".join(levels))


def test_a_python_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(CogProjectError) as refused:
        refuse_on_host(CogConfig(python_version="3.13"), HOST)
    assert str(refused.value).startswith(
        "build.python_version: 3.13: no Python 3.13 was found on this host (found: 3.11.7, 3.12.1)"
    )


def test_another_patch_of_an_installed_python_is_accepted() -> None:
    refuse_on_host(CogConfig(python_version="3.11.9"), HOST)


def test_a_missing_system_package_is_refused_by_name() -> None:
    config = CogConfig(system_packages=("git", "zsh"))
    host = Host(python_versions=("3.11",), system_packages=frozenset({"git"}))
    with pytest.raises(CogProjectError, match=r"^build\.system_packages: zsh: not installed"):
        refuse_on_host(config, host)


def test_a_gpu_model_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(CogProjectError, match="this host has no NVIDIA GPU"):
        refuse_on_host(CogConfig(gpu=True), HOST)
