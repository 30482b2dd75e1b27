"""Order and bounds of what waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.errors import ResourceExhausted
from services.scheduler.backlog import Backlog


def test_a_full_backlog_says_so() -> None:
    backlog = Backlog(2)
    backlog.append("v", "a")
    backlog.check_room()
    backlog.append("v", "b")
    with pytest.raises(ResourceExhausted) as caught:
        backlog.check_room()
    assert caught.value.reason == "BACKLOG_FULL"


def test_what_lost_its_turn_is_next_again() -> None:
    backlog = Backlog(9)
    for name in ("a", "b", "c"):
        backlog.append("v", name)
    backlog.remove("v", "a")
    backlog.restore("v", "a")
    assert backlog.waiting("v") == ["a", "b", "c"]
    assert [backlog.position("v", name) for name in ("a", "b", "c", "d")] == [1, 2, 3, 0]


def test_versions_take_turns() -> None:
    backlog = Backlog(9)
    for version in ("u", "v", "w"):
        backlog.append(version, f"of-{version}")
    assert [next(backlog.versions_in_turn()) for _ in range(4)] == ["u", "v", "w", "u"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "restore", "remove"]),
            st.sampled_from("uv"),
            st.integers(0, 5),
        )
    )
)
def test_size_order_and_positions_agree_with_plain_lists(
    steps: list[tuple[str, str, int]],
) -> None:
    backlog, model = Backlog(99), {"u": list[str](), "v": list[str]()}
    for action, version, number in steps:
        name = f"{version}{number}"
        if action == "remove":
            assert backlog.remove(version, name) == (name in model[version])
            if name in model[version]:
                model[version].remove(name)
        elif action == "append" and name not in model[version]:
            backlog.append(version, name)
            model[version].append(name)
        elif action == "restore" and name not in model[version]:
            backlog.restore(version, name)
            model[version].insert(0, name)
    assert len(backlog) == sum(map(len, model.values()))
    for version, names in model.items():
        assert backlog.waiting(version) == names
        assert backlog.first(version) == (names[0] if names else None)
        positions = [backlog.position(version, name) for name in names]
        assert positions == sorted(positions)
        assert positions[:1] == [1][: len(names)]
        assert all(position <= len(names) for position in positions)
