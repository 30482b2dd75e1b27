"""The data folder of a mesh."""

import json
import os
import stat
from pathlib import Path

import pytest

from cli.data_dir import DataDir, RunState

STATE = RunState(
    url="http://127.0.0.1:1", grpc="127.0.0.1:2", oip="127.0.0.1:3", token="t", data="d", pids={}
)


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    folder = DataDir(tmp_path / "d")
    folder.make()
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_for_their_user_only_and_stay_the_same(data_dir: DataDir) -> None:
    first = (data_dir.secrets(), data_dir.token())
    assert (data_dir.secrets(), data_dir.token()) == first
    assert data_dir.token().startswith("rp_")
    assert len(set(data_dir.secrets().values())) == 3
    assert mode(data_dir.path) == 0o700
    assert mode(data_dir.path / "secrets.json") == mode(data_dir.path / "token") == 0o600


def test_only_one_holds_the_lock(data_dir: DataDir) -> None:
    lock = data_dir.lock()
    assert lock is not None
    assert data_dir.is_running()
    assert data_dir.lock() is None
    lock.close()
    assert not data_dir.is_running()


def test_the_lock_names_its_holder_as_long_as_it_is_held(data_dir: DataDir) -> None:
    assert data_dir.supervisor_pid() is None
    lock = data_dir.lock()
    assert lock is not None
    assert data_dir.supervisor_pid() == os.getpid()
    lock.close()
    assert data_dir.supervisor_pid() is None
    assert (data_dir.path / "lock").read_text() == ""


def test_the_state_is_read_back_until_it_is_removed(data_dir: DataDir) -> None:
    assert data_dir.read_state() is None
    data_dir.write_state(STATE)
    assert data_dir.read_state() == STATE
    data_dir.remove_state()
    assert data_dir.read_state() is None


def test_the_ready_line_has_exactly_its_keys() -> None:
    assert list(json.loads(STATE.to_json())) == ["url", "grpc", "oip", "token", "data", "pids"]


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="longer than"):
        DataDir(tmp_path / ("x" * 120)).make()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="choose another folder"):
        DataDir(tmp_path / "file" / "d").make()
