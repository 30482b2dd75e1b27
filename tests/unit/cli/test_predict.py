"""References and typed arguments of `reprise run`."""

import pytest

from cli.client import CallFailed
from cli.predict import split_reference, typed
from cli.show import money


@pytest.mark.parametrize(
    ("reference", "parts"),
    [("a/b", ("a", "b", "")), ("a/b:cafe", ("a", "b", "cafe"))],
)
def test_a_reference_is_owner_name_and_version(reference: str, parts: tuple[str, ...]) -> None:
    assert split_reference(reference) == parts


@pytest.mark.parametrize("reference", ["", "a", "a/", "/b", "a/b/c"])
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(CallFailed, match="owner/name"):
        split_reference(reference)


@pytest.mark.parametrize(
    ("value", "json_type", "result"),
    [
        ("5", "integer", 5),
        ("0.5", "number", 0.5),
        ("true", "boolean", True),
        ("[1, 2]", "array", [1, 2]),
        ("5", "string", "5"),
        ("5", "", "5"),
    ],
)
def test_an_argument_is_typed_by_the_schema(value: str, json_type: str, result: object) -> None:
    assert typed("key", value, json_type) == result


def test_an_argument_of_the_wrong_type_is_named() -> None:
    with pytest.raises(CallFailed, match="count: 'many' is not of type integer"):
        typed("count", "many", "integer")


@pytest.mark.parametrize(
    ("micros", "text"),
    [(0, "0.00 USD"), (1, "0.000001 USD"), (12_500_000, "12.50 USD"), (-250_000, "-0.25 USD")],
)
def test_money_is_never_rounded(micros: int, text: str) -> None:
    assert money(micros) == text
