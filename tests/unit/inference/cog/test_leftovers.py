"""Folders of finished predictions go away; what a model planted there leads nowhere."""

import os
from pathlib import Path

from services.inference.cog.leftovers import Leftovers


def exchange(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_DIRECTORY)


async def test_empty_and_full_folders_of_finished_predictions_are_removed(tmp_path: Path) -> None:
    leftovers = Leftovers(exchange(tmp_path / "coglet"))
    predictions = tmp_path / "coglet" / "predictions"
    for name in ("empty", "full", "running"):
        for part in ("inputs", "outputs"):
            (predictions / name / part).mkdir(parents=True)
    (predictions / "full" / "outputs" / "spilled.bin").write_bytes(b"x")
    for name in ("empty", "full", "never_made"):
        leftovers.add(name)
    await leftovers.close()
    assert [path.name for path in predictions.iterdir()] == ["running"]


async def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "inputs").mkdir(parents=True)
    (outside / "outputs").mkdir()
    leftovers = Leftovers(exchange(tmp_path / "coglet"))
    (tmp_path / "coglet" / "predictions").mkdir()
    (tmp_path / "coglet" / "predictions" / "a1").symlink_to(outside)
    leftovers.add("a1")
    await leftovers.close()
    assert (outside / "inputs").exists()


async def test_a_planted_link_in_place_of_the_whole_folder_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "a1" / "inputs").mkdir(parents=True)
    leftovers = Leftovers(exchange(tmp_path / "coglet"))
    (tmp_path / "coglet" / "predictions").symlink_to(outside)
    leftovers.add("a1")
    await leftovers.close()
    assert (outside / "a1" / "inputs").exists()
