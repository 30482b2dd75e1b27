"""The packages of a project as one flat list, and the key under which its environment is shared."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.inference.cog.config import CogConfig
from services.inference.cog.errors import CogProjectError

_NESTING_LIMIT = 5
_LINE_LIMIT = 5_000
_PROVIDED = re.compile(r"(?:cog|coglet)(?:$|[\s\[<>=!~;@(])", re.IGNORECASE)
_NESTED = re.compile(r"(?:-r|--requirement)[\s=]*(.+)")
_CONSTRAINT = re.compile(r"(?:-c|--constraint)\b.*")
_EDITABLE = re.compile(r"(?:-e|--editable)\b.*")
_LOCAL_FILE = re.compile(r"(?:.*?@\s*)?(?:file:)?(.+\.(?:whl|zip|tar\.gz))(?:\s*;.*)?")


@dataclass(frozen=True, slots=True)
class Requirements:
    """`key` covers everything that can change the installed result, the local files' contents
    included.
    """

    project_dir: Path
    python_version: str
    cog_version: str
    lines: tuple[str, ...]
    key: str

    @property
    def pinned(self) -> tuple[str, ...]:
        # cog alone accepts any coglet below 1.0, and the two only work when they are equal.
        return (f"cog=={self.cog_version}", f"coglet=={self.cog_version}")


def read_requirements(config: CogConfig, project_dir: Path) -> Requirements:
    if config.requirements_file is not None:
        lines = tuple(_file_lines(project_dir, project_dir / config.requirements_file, depth=0))
    else:
        lines = config.python_packages
    lines = tuple(line for line in lines if not _PROVIDED.match(line))
    if len(lines) > _LINE_LIMIT:
        raise CogProjectError(
            where="build.python_requirements",
            problem=f"more than {_LINE_LIMIT} lines",
            fix="List only what the model imports.",
        )
    digests = {line: digest for line in lines if (digest := _local_digest(project_dir, line))}
    content = json.dumps([config.python_version, config.cog_version, lines, digests])
    return Requirements(
        project_dir=project_dir,
        python_version=config.python_version,
        cog_version=config.cog_version,
        lines=lines,
        key=hashlib.sha256(content.encode()).hexdigest()[:32],
    )


def _file_lines(project_dir: Path, path: Path, *, depth: int) -> Iterator[str]:
    where = str(path.relative_to(project_dir))
    if depth > _NESTING_LIMIT:
        raise CogProjectError(
            where=where, problem="requirements files include each other", fix="Write one file."
        )
    for number, raw in enumerate(_logical_lines(path), start=1):
        line = re.sub(r"(?:^|\s+)#.*$", "", raw).strip()
        if not line:
            continue
        if _CONSTRAINT.fullmatch(line):
            raise CogProjectError(
                where=f"{where}:{number}",
                problem="constraint files are not read",
                fix="Pin the versions in the requirements themselves.",
            )
        if _EDITABLE.fullmatch(line):
            raise CogProjectError(
                where=f"{where}:{number}",
                problem="an editable requirement would run its build on the host",
                fix="Import the folder from the project instead, or add a wheel.",
            )
        nested = _NESTED.fullmatch(line)
        if nested is None:
            yield line
            continue
        included = _inside(project_dir, path.parent / nested[1].strip(), f"{where}:{number}")
        yield from _file_lines(project_dir, included, depth=depth + 1)


def _logical_lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").replace("\\\n", " ").splitlines()


def _inside(project_dir: Path, path: Path, where: str) -> Path:
    resolved, root = path.resolve(), project_dir.resolve()
    if not resolved.is_relative_to(root) or not resolved.is_file():
        raise CogProjectError(
            where=where,
            problem=f"{path.name} is not a file of the project",
            fix="Add the file to the project, next to cog.yaml.",
        )
    return project_dir / resolved.relative_to(root)


def _local_digest(project_dir: Path, line: str) -> str | None:
    match = _LOCAL_FILE.fullmatch(line)
    if match is None or "://" in line or line.startswith("-"):
        return None
    path = _inside(project_dir, project_dir / match[1], line)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
