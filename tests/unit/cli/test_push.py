"""What goes into a version."""

from pathlib import Path

import pytest
from reprise.storage.v1 import model_pb2

from cli.client import CallFailed
from cli.push import read_project


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def paths(folder: Path, config: Path | None = None) -> list[str]:
    return [item.entry.path for item in read_project(folder, config).files]


def test_a_cog_project_is_its_files_without_what_never_belongs(tmp_path: Path) -> None:
    write(tmp_path, "cog.yaml", "predict.py", "weights/a.bin", "__pycache__/x.pyc", ".git/config")
    (tmp_path / ".gitignore").write_text("weights/\n")
    assert paths(tmp_path) == [".gitignore", "cog.yaml", "predict.py", "weights/a.bin"]


def test_digests_and_modes_are_those_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, "cog.yaml", "run.sh")
    (tmp_path / "run.sh").chmod(0o755)
    files = {item.entry.path: item.entry for item in read_project(tmp_path, None).files}
    assert files["run.sh"].is_executable
    assert not files["cog.yaml"].is_executable
    assert files["cog.yaml"].size_bytes == len("cog.yaml")
    assert len(files["cog.yaml"].digest) == 64


def test_an_onnx_file_goes_with_its_config_and_the_labels_it_names(tmp_path: Path) -> None:
    write(tmp_path, "model.onnx", "labels.txt", "notes.txt", "model.onnx.data")
    config = tmp_path / "typed.yaml"
    config.write_text("outputs: {scores: {type: labels, tensor: y, labels: labels.txt}}")
    project = read_project(tmp_path / "model.onnx", config)
    assert project.kind == model_pb2.VERSION_KIND_ENGINE
    assert {item.entry.path for item in project.files} == {
        "model.onnx",
        "reprise.yaml",
        "labels.txt",
        "model.onnx.data",
    }


def test_labels_may_be_a_json_list(tmp_path: Path) -> None:
    write(tmp_path, "model.onnx", "labels.json", "notes.json")
    config = tmp_path / "reprise.yaml"
    config.write_text("outputs: {scores: {type: labels, tensor: y, labels: labels.json}}")
    assert paths(tmp_path / "model.onnx", config) == ["model.onnx", "reprise.yaml", "labels.json"]


def test_a_config_that_is_no_text_is_left_to_the_builder_to_refuse(tmp_path: Path) -> None:
    write(tmp_path, "model.onnx", "labels.txt")
    config = tmp_path / "reprise.yaml"
    config.write_bytes(b"\xff\xfe\x00")
    assert paths(tmp_path / "model.onnx", config) == ["model.onnx", "reprise.yaml"]


@pytest.mark.parametrize(
    ("name", "words"), [("empty", "no cog.yaml"), ("gone", "no such"), ("a.txt", "neither")]
)
def test_what_is_no_model_is_refused_with_the_fix(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CallFailed, match=words):
        read_project(tmp_path / name, None)


def test_a_link_out_of_the_project_is_refused(tmp_path: Path) -> None:
    project = write(tmp_path / "project", "cog.yaml")
    (tmp_path / "secret").write_text("s")
    (project / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(CallFailed, match="outside of the project"):
        read_project(project, None)
