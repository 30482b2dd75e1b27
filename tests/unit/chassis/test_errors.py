"""Refusals that every service words in one way."""

import errno
import sqlite3

import pytest
import sqlalchemy

from services.chassis.errors import FieldViolation, file_too_large, invalid_field, of_full_disk


def test_the_refusal_of_a_field_names_it_in_the_text_and_beside_it() -> None:
    error = invalid_field("name", "must not be empty", "required")
    assert error.message == "name must not be empty"
    assert error.fields == (FieldViolation("name", "must not be empty", "required"),)


@pytest.mark.parametrize(("limit_bytes", "text"), [(100 * 2**20, "100MB"), (512, "512 bytes")])
def test_the_file_limit_is_told_in_replicates_words(limit_bytes: int, text: str) -> None:
    error = file_too_large(limit_bytes)
    assert error.message == f"Files must be less than {text} in size"
    assert error.reason == "FILE_TOO_LARGE"


def test_a_full_disk_is_told_from_other_faults() -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        with pytest.raises(sqlalchemy.exc.OperationalError) as full:
            connection.exec_driver_sql("CREATE TABLE things (id INTEGER)")
        with pytest.raises(sqlalchemy.exc.OperationalError) as missing:
            connection.exec_driver_sql("SELECT * FROM things")
    assert isinstance(full.value.orig, sqlite3.OperationalError)
    for fault in (full.value, OSError(errno.ENOSPC, "no space")):
        refusal = of_full_disk(fault)
        assert refusal is not None
        assert refusal.reason == "DISK_FULL"
    assert of_full_disk(missing.value) is None
    assert of_full_disk(OSError(errno.EPERM, "no")) is None
