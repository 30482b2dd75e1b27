"""Environments built by the real uv."""

import asyncio
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from services.inference.cog.config import CogConfig
from services.inference.cog.environment import Environment, EnvironmentStore
from services.inference.cog.errors import EnvironmentBuildFailed
from services.inference.cog.host import inspect_host
from services.inference.cog.requirements import Requirements, read_requirements

INSTALLED = "Installed "


def write_wheel(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def with_packages(project_dir: Path, *packages: str) -> Requirements:
    return read_requirements(CogConfig(python_packages=packages), project_dir)


async def test_a_wheel_of_the_project_is_installed_and_compiled(
    shared_dir: Path, environment: Environment, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "tiny-1.0-py3-none-any.whl", "tiny")
    requirements = with_packages(tmp_path, "./tiny-1.0-py3-none-any.whl")
    built = await EnvironmentStore(shared_dir).ensure(requirements, lambda line: None)
    assert built.path != environment.path
    process = await asyncio.create_subprocess_exec(
        built.python,
        "-c",
        "import tiny, cog, coglet; print(tiny.ANSWER, tiny.__cached__)",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    answer, compiled = output.decode().split()
    assert answer == "42"
    assert Path(compiled).exists()


async def test_two_builders_of_one_environment_build_it_once(
    shared_dir: Path, environment: Environment, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "twice-1.0-py3-none-any.whl", "twice")
    requirements = with_packages(tmp_path, "./twice-1.0-py3-none-any.whl")
    lines: list[str] = []
    stores = [EnvironmentStore(shared_dir), EnvironmentStore(shared_dir)]
    built = await asyncio.gather(*(store.ensure(requirements, lines.append) for store in stores))
    assert built[0] == built[1]
    assert len([line for line in lines if INSTALLED in line]) == 1
    lines.clear()
    await stores[0].ensure(requirements, lines.append)
    assert lines == []


async def test_a_release_that_does_not_exist_fails_with_uvs_words_and_leaves_nothing(
    shared_dir: Path, environment: Environment, tmp_path: Path
) -> None:
    requirements = with_packages(tmp_path, "certifi==1.2.3.4")
    with pytest.raises(EnvironmentBuildFailed) as failed:
        await EnvironmentStore(shared_dir).ensure(requirements, lambda line: None)
    assert "certifi==1.2.3.4" in str(failed.value)
    assert str(shared_dir) not in str(failed.value)
    left = [path.name for path in (shared_dir / "environments").glob(f"{requirements.key}*")]
    assert left == [f"{requirements.key}.lock"]


async def test_a_source_package_is_not_built_on_the_host(
    shared_dir: Path, environment: Environment, tmp_path: Path
) -> None:
    planted = tmp_path / "built"
    with tarfile.open(tmp_path / "evil-1.0.tar.gz", "w:gz") as archive:
        content = f"open({str(planted)!r}, 'w')\n".encode()
        member = tarfile.TarInfo("evil-1.0/setup.py")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    requirements = with_packages(tmp_path, "./evil-1.0.tar.gz")
    with pytest.raises(EnvironmentBuildFailed) as failed:
        await EnvironmentStore(shared_dir).ensure(requirements, lambda line: None)
    assert "building from source is off here" in failed.value.reason
    assert not planted.exists()


async def test_a_cancelled_build_leaves_nothing(
    shared_dir: Path, environment: Environment, tmp_path: Path
) -> None:
    write_wheel(tmp_path / "never-1.0-py3-none-any.whl", "never")
    requirements = with_packages(tmp_path, "./never-1.0-py3-none-any.whl")
    begun = asyncio.Event()
    build = asyncio.create_task(
        EnvironmentStore(shared_dir).ensure(requirements, lambda line: begun.set())
    )
    async with asyncio.timeout(10):
        await begun.wait()
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await build
    left = [path.name for path in (shared_dir / "environments").glob(f"{requirements.key}*")]
    assert left == [f"{requirements.key}.lock"]


async def test_the_host_is_described_by_its_pythons_and_packages(tmp_path: Path) -> None:
    host = await inspect_host(EnvironmentStore(tmp_path), ["libc6", "not-a-package"])
    assert any(version.startswith("3.11") for version in host.python_versions)
    if shutil.which("dpkg-query"):
        assert host.system_packages == {"libc6"}
