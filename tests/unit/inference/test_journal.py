"""Steps of one attempt: order, merging, numbering, sizes."""

from reprise.inference.v1 import events_pb2

from services.inference.journal import RunJournal


def journal() -> RunJournal:
    return RunJournal("p", 2, lambda: None)


def taken(source: RunJournal, room: int = 1_000_000) -> list[events_pb2.RunEvent]:
    events: list[events_pb2.RunEvent] = []
    source.take(room, events)
    return events


def test_steps_are_numbered_from_one_without_gaps_over_several_takings() -> None:
    run = journal()
    run.started()
    run.logged("a")
    first = taken(run)
    run.completed(events_pb2.RunCompleted())
    second = taken(run)
    assert [event.sequence for event in first + second] == [1, 2, 3]
    assert {(event.prediction_id, event.attempt) for event in first + second} == {("p", 2)}


def test_neighbouring_logs_and_items_are_merged_and_their_order_is_kept() -> None:
    run = journal()
    run.logged("a")
    run.logged("b")
    run.output("1")
    run.output("2")
    run.logged("c")
    events = taken(run)
    assert [event.WhichOneof("step") for event in events] == ["logged", "output", "logged"]
    assert events[0].logged.text == "ab"
    assert [item.text for item in events[1].output.items] == ["1", "2"]


def test_merging_stops_at_a_bound() -> None:
    run = journal()
    run.logged("x" * 60_000)
    run.logged("y" * 60_000)
    assert len(taken(run)) == 2


def test_what_has_no_room_stays_for_the_next_report() -> None:
    run = journal()
    run.logged("x" * 60_000)
    run.output('"' + "y" * 60_000 + '"')
    assert len(taken(run, room=70_000)) == 1
    assert run.has_pending
    assert len(taken(run, room=70_000)) == 1
    assert not run.has_pending


def test_a_step_larger_than_the_room_still_leaves_alone() -> None:
    run = journal()
    run.logged("x" * 60_000)
    assert len(taken(run, room=10)) == 1


def test_sizes_of_growth_add_up_to_what_is_taken() -> None:
    run = journal()
    grown = run.started() + run.logged("abc") + run.logged("é") + run.output("1") + run.output("2")
    events: list[events_pb2.RunEvent] = []
    assert run.take(1_000_000, events) == grown
