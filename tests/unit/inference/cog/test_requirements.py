"""The package list of a project and the key under which its environment is shared."""

from pathlib import Path

import pytest

from services.inference.cog.config import CogConfig
from services.inference.cog.errors import CogProjectError
from services.inference.cog.requirements import Requirements, read_requirements


def requirements_of(tmp_path: Path, text: str, python_version: str = "3.11") -> Requirements:
    (tmp_path / "requirements.txt").write_text(text)
    config = CogConfig(requirements_file="requirements.txt", python_version=python_version)
    return read_requirements(config, tmp_path)


def test_cog_and_coglet_are_pinned_equal_and_the_projects_own_lines_dropped(tmp_path: Path) -> None:
    requirements = requirements_of(
        tmp_path, "cog==0.9\ncoglet\ncog[tracing]>=0.1\ncogs==1\nnumpy\n"
    )
    assert requirements.lines == ("cogs==1", "numpy")
    assert requirements.pinned == ("cog==0.23.1", "coglet==0.23.1")


def test_comments_nested_files_and_continued_lines_are_flattened(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("scipy  # for signals\n")
    text = "# head\nnumpy==2.0 \\\n  --hash=sha256:ab\n-r more.txt\nhttps://x.org/a.whl#sha256=1\n"
    assert requirements_of(tmp_path, text).lines == (
        "numpy==2.0    --hash=sha256:ab",
        "scipy",
        "https://x.org/a.whl#sha256=1",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-r ../other.txt", "requirements.txt:2: other.txt is not a file of the project"),
        ("-e .", "requirements.txt:2: an editable requirement"),
        ("-c pins.txt", "requirements.txt:2: constraint files are not read"),
        ("./missing.whl", "missing.whl is not a file of the project"),
        ("../a.tar.gz", "a.tar.gz is not a file of the project"),
        ("-r requirements.txt", "requirements files include each other"),
    ],
)
def test_a_line_that_cannot_be_honoured_is_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(CogProjectError) as refused:
        requirements_of(tmp_path, f"numpy\n{line}\n")
    assert message in str(refused.value)


def test_the_key_follows_everything_that_changes_the_result(tmp_path: Path) -> None:
    wheel = tmp_path / "a-1.whl"
    wheel.write_bytes(b"one")
    first = requirements_of(tmp_path, "./a-1.whl\n").key
    assert requirements_of(tmp_path, "./a-1.whl\n# a comment\n").key == first
    assert requirements_of(tmp_path, "./a-1.whl\n", python_version="3.12").key != first
    assert requirements_of(tmp_path, "./a-1.whl\nnumpy\n").key != first
    wheel.write_bytes(b"two")
    assert requirements_of(tmp_path, "./a-1.whl\n").key != first
