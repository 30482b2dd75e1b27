"""The catalogue over gRPC: models, pushes and references."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from reprise.scheduler.v1 import events_pb2
from reprise.storage.v1 import model_pb2

from services.chassis.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    PermissionDenied,
    RepriseError,
)
from tests.integration.storage.service import WAIT_S, Client, StorageService, run_service

PUBLIC = model_pb2.VISIBILITY_PUBLIC
PRIVATE = model_pb2.VISIBILITY_PRIVATE


async def create(client: Client, model: str, *, request_id: str = "", **values: Any) -> Any:
    owner, _, name = model.partition("/")
    request = model_pb2.CreateModelRequest(owner=owner, name=name, **values)
    return (await client.call(client.models.CreateModel, request, request_id=request_id)).model


async def list_models(client: Client, **values: Any) -> Any:
    return await client.call(client.models.ListModels, model_pb2.ListModelsRequest(**values))


async def test_a_new_model_is_private_empty_and_as_its_owner_described_it(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    made = await create(alice, "alice/hello", description="Says hello", paper_url="https://a.b")
    assert made.url == "/alice/hello"
    assert made.visibility == PRIVATE
    assert made.description == "Says hello"
    assert made.paper_url == "https://a.b"
    assert not made.HasField("github_url")
    assert not made.HasField("latest_version")
    assert made.run_count == 0
    assert await alice.get_model("alice/hello") == made


async def test_a_name_is_taken_once_but_a_repeated_request_gets_its_model(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    first = await create(alice, "alice/hello", request_id="r1")
    assert await create(alice, "alice/hello", request_id="r1") == first
    for request_id in ("r2", ""):
        with pytest.raises(AlreadyExists, match="alice/hello"):
            await create(alice, "alice/hello", request_id=request_id)


async def test_models_are_made_in_ones_own_name_except_by_an_operator(
    storage: StorageService,
) -> None:
    mallory = storage.client("mallory")
    with pytest.raises(PermissionDenied, match="mallory/hello"):
        await create(mallory, "alice/hello")
    files = await mallory.project()
    with pytest.raises(PermissionDenied):
        await mallory.push("alice/hello", files)
    operator = storage.client("root", is_operator=True)
    assert (await create(operator, "alice/hello")).owner == "alice"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("github_url", "javascript:alert(1)"),
        ("cover_image_url", "https://" + "x" * 3000),
        ("description", "x" * 5000),
        ("hardware", "CPU 1"),
        ("name", "A"),
    ],
)
async def test_a_bad_field_is_named(storage: StorageService, field: str, value: str) -> None:
    request = model_pb2.CreateModelRequest(owner="alice", name="hello")
    setattr(request, field, value)
    alice = storage.client("alice")
    with pytest.raises(InvalidInput) as refused:
        await alice.call(alice.models.CreateModel, request)
    assert [violation.field for violation in refused.value.fields] == [field]


async def test_a_push_makes_model_and_version_and_tells_its_steps(storage: StorageService) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    push = await alice.push("alice/hello", files)
    assert push.steps[-len(storage.builds.steps) :] == storage.builds.steps
    assert len(push.version.id) == 64
    assert push.version.cog_version == "0.22.0"
    assert "Output" in json.loads(push.version.openapi_schema.text)["components"]["schemas"]
    assert push.version.model == "alice/hello"
    model = await alice.get_model("alice/hello")
    assert model.latest_version == push.version
    assert model.visibility == PRIVATE
    [request] = storage.builds.requests
    assert request.account_id == "alice"
    assert list(request.files) == files


async def test_the_same_content_is_the_same_version_without_a_second_build(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    first = await alice.push("alice/hello", files)
    again = await alice.push("alice/hello", list(reversed(files)))
    assert again.version == first.version
    assert again.steps == []
    elsewhere = await alice.push("alice/other", files)
    assert elsewhere.version.id == first.version.id
    assert elsewhere.version.model == "alice/other"
    assert len(storage.builds.requests) == 1


async def test_concurrent_pushes_of_the_same_content_share_one_build(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    storage.builds.gate.clear()
    pushes = [asyncio.create_task(alice.push("alice/hello", files)) for _ in range(5)]
    async with asyncio.timeout(WAIT_S):
        while not storage.builds.requests:
            await asyncio.sleep(0)
        storage.builds.gate.set()
        done = await asyncio.gather(*pushes)
    assert len({push.version.id for push in done}) == 1
    assert len(storage.builds.requests) == 1
    versions = await alice.call(
        alice.models.ListVersions, model_pb2.ListVersionsRequest(owner="alice", name="hello")
    )
    assert len(versions.versions) == 1


async def test_a_build_ends_when_nobody_waits_for_it_any_more(storage: StorageService) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    storage.builds.gate.clear()
    request = model_pb2.CreateVersionRequest(
        owner="alice", name="hello", kind=model_pb2.VERSION_KIND_COG, files=files
    )
    call = alice.models.CreateVersion(request, metadata=alice.peer.metadata("alice"))
    async with asyncio.timeout(WAIT_S):
        while (await call.read()).step != storage.builds.steps[0]:
            pass
        call.cancel()
        await storage.builds.given_up.wait()
    storage.builds.gate.set()
    assert (await alice.push("alice/hello", files)).version.id
    assert len(storage.builds.requests) == 2


async def test_a_push_without_an_inference_service_ends_with_what_to_do(tmp_path: Path) -> None:
    # A bound port that nobody listens on.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{nobody.getsockname()[1]}"
        async for storage in run_service(tmp_path, inference_target=target, inference_wait_s=0.2):
            alice = storage.client("alice")
            request = model_pb2.CreateVersionRequest(
                owner="alice",
                name="hello",
                kind=model_pb2.VERSION_KIND_COG,
                files=await alice.project(),
            )
            call = alice.models.CreateVersion(request, metadata=alice.peer.metadata("alice"))
            assert (await call.read()).step == "Looking for an inference service"
            with pytest.raises(grpc.aio.AioRpcError, match="start one and push again"):
                await asyncio.wait_for(call.read(), WAIT_S)


async def test_a_failed_build_leaves_neither_model_nor_version_and_can_be_repeated(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    storage.builds.refusal = "predict.py has no function run"
    with pytest.raises(InvalidInput, match="no function run"):
        await alice.push("alice/hello", files)
    with pytest.raises(NotFound):
        await alice.get_model("alice/hello")
    assert list((await list_models(alice)).models) == []
    storage.builds.refusal = None
    assert (await alice.push("alice/hello", files)).version.id


async def test_a_failed_build_leaves_an_existing_model_as_it_was(storage: StorageService) -> None:
    alice = storage.client("alice")
    first = await alice.push("alice/hello", await alice.project())
    storage.builds.refusal = "it crashed"
    with pytest.raises(InvalidInput):
        await alice.push("alice/hello", await alice.project("raise SystemExit"))
    assert (await alice.get_model("alice/hello")).latest_version == first.version


async def test_a_build_whose_schema_lacks_an_output_makes_no_version(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    storage.builds.built.openapi_schema.text = '{"components": {"schemas": {}}}'
    with pytest.raises(InvalidInput, match=r"components\.schemas\.Output"):
        await alice.push("alice/hello", await alice.project())
    with pytest.raises(NotFound):
        await alice.get_model("alice/hello")


async def test_a_blob_that_was_not_uploaded_is_named_before_any_build(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    files.append(model_pb2.VersionFile(path="w.bin", digest="c" * 64, size_bytes=1))
    with pytest.raises(InvalidInput, match=r"c{64} of 'w\.bin' was not uploaded") as refused:
        await alice.push("alice/hello", files)
    assert refused.value.reason == "BLOBS_MISSING"
    assert [violation.field for violation in refused.value.fields] == ["files[2].digest"]
    assert storage.builds.requests == []


async def test_blobs_of_another_account_cannot_be_pushed(storage: StorageService) -> None:
    files = await storage.client("alice").project()
    with pytest.raises(InvalidInput, match="not uploaded by you"):
        await storage.client("bob").push("bob/hello", files)


async def test_a_file_whose_size_is_not_its_blobs_is_refused(storage: StorageService) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    files[1].size_bytes += 1
    with pytest.raises(InvalidInput, match=r"'predict\.py' is said to have"):
        await alice.push("alice/hello", files)


@pytest.mark.parametrize("path", ["../../root/.ssh/authorized_keys", "/etc/cron.d/x", "a\\..\\b"])
async def test_a_path_that_leaves_the_folder_is_refused_by_name(
    storage: StorageService, path: str
) -> None:
    alice = storage.client("alice")
    files = await alice.project()
    files.append(model_pb2.VersionFile(path=path, digest=files[0].digest, size_bytes=1))
    with pytest.raises(InvalidInput) as refused:
        await alice.push("alice/hello", files)
    assert repr(path) in refused.value.message
    assert storage.builds.requests == []


async def test_a_version_is_resolved_by_each_of_its_three_names(storage: StorageService) -> None:
    alice = storage.client("alice")
    storage.builds.built.is_iterator = True
    storage.builds.built.has_file_output = True
    old = await alice.push("alice/hello", await alice.project("old"))
    files = await alice.project("new")
    new = await alice.push("alice/hello", files)
    spec = await alice.resolve("alice/hello")
    assert spec.version_id == new.version.id
    assert list(spec.files) == sorted(files, key=lambda file: file.path)
    assert (spec.model, spec.owner, spec.hardware) == ("alice/hello", "alice", "cpu")
    assert spec.is_iterator
    assert spec.has_file_output
    assert spec.openapi_schema == new.version.openapi_schema
    assert (await alice.resolve(old.version.id)).version_id == old.version.id
    assert (await alice.resolve(f"alice/hello:{old.version.id}")).version_id == old.version.id


async def test_a_private_model_does_not_exist_for_others(storage: StorageService) -> None:
    alice, bob = storage.client("alice"), storage.client("bob")
    version_id = (await alice.push("alice/secret", await alice.project())).version.id
    for reference in ("alice/secret", version_id, f"alice/secret:{version_id}"):
        with pytest.raises(NotFound, match="private"):
            await bob.resolve(reference)
    with pytest.raises(NotFound):
        await bob.get_model("alice/secret")
    listing = model_pb2.ListVersionsRequest(owner="alice", name="secret")
    with pytest.raises(NotFound):
        await bob.call(bob.models.ListVersions, listing)
    request = model_pb2.GetVersionRequest(owner="alice", name="secret", version_id=version_id)
    with pytest.raises(NotFound):
        await bob.call(bob.models.GetVersion, request)
    assert list((await list_models(bob)).models) == []
    assert len((await list_models(alice)).models) == 1


async def test_a_public_model_is_everybodys_to_read(storage: StorageService) -> None:
    alice, bob = storage.client("alice"), storage.client("bob")
    files = await alice.project()
    version = (await alice.push("alice/hello", files, visibility=PUBLIC)).version
    assert (await bob.resolve("alice/hello")).version_id == version.id
    assert (await bob.resolve(version.id)).owner == "alice"
    assert (await bob.get_model("alice/hello")).latest_version == version
    request = model_pb2.GetVersionRequest(owner="alice", name="hello", version_id=version.id)
    assert (await bob.call(bob.models.GetVersion, request)).version == version


async def test_a_bare_id_means_ones_own_version_where_several_have_the_same_content(
    storage: StorageService,
) -> None:
    alice, bob = storage.client("alice"), storage.client("bob")
    files = await alice.project()
    version_id = (await alice.push("alice/hello", files, visibility=PUBLIC)).version.id
    assert (await bob.push("bob/copy", await bob.project())).version.id == version_id
    assert (await bob.resolve(version_id)).model == "bob/copy"
    assert (await storage.client("carol").resolve(version_id)).model == "alice/hello"


async def test_an_id_of_another_model_is_refused_naming_both(storage: StorageService) -> None:
    alice = storage.client("alice")
    await alice.push("alice/hello", await alice.project("one"))
    other = await alice.push("alice/other", await alice.project("two"))
    with pytest.raises(InvalidInput) as refused:
        await alice.resolve(f"alice/hello:{other.version.id}")
    for named in (other.version.id, "alice/hello", "alice/other"):
        assert named in refused.value.message


@pytest.mark.parametrize(
    ("reference", "meaning", "advice"),
    [
        ("alice/empty", NotFound, "push one first"),
        ("alice/absent", NotFound, "check the name"),
        ("f" * 64, NotFound, "copy the id"),
        ("nonsense", InvalidInput, "owner/name"),
    ],
)
async def test_a_reference_that_leads_nowhere_says_what_to_do(
    storage: StorageService, reference: str, meaning: type[RepriseError], advice: str
) -> None:
    alice = storage.client("alice")
    await create(alice, "alice/empty")
    with pytest.raises(meaning, match=advice):
        await alice.resolve(reference)


async def test_an_absent_version_of_a_model_is_not_found(storage: StorageService) -> None:
    alice = storage.client("alice")
    await alice.push("alice/hello", await alice.project())
    for version_id in ("f" * 64, "", "latest"):
        request = model_pb2.GetVersionRequest(owner="alice", name="hello", version_id=version_id)
        with pytest.raises(NotFound, match="copy an id"):
            await alice.call(alice.models.GetVersion, request)


async def test_models_are_listed_by_newest_version_or_by_age(storage: StorageService) -> None:
    alice = storage.client("alice")
    for name in ("a", "b", "c"):
        await create(alice, f"alice/{name}")
    await alice.push("alice/b", await alice.project())

    async def names(**values: str) -> list[str]:
        return [model.name for model in (await list_models(alice, **values)).models]

    assert (await names())[0] == "b"
    assert await names(sort_by="model_created_at") == ["c", "b", "a"]
    assert await names(sort_by="model_created_at", sort_direction="asc") == ["a", "b", "c"]
    with pytest.raises(InvalidInput, match="sort_by"):
        await names(sort_by="run_count")


async def test_lists_are_paged_by_25_and_a_cursor_belongs_to_its_list(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    for index in range(30):
        await create(alice, f"alice/m{index:02}")
    first = await list_models(alice)
    rest = await list_models(alice, page_token=first.next_page_token)
    names = [model.name for answer in (first, rest) for model in answer.models]
    assert (len(first.models), len(set(names))) == (25, 30)
    assert rest.next_page_token == ""
    back = await list_models(alice, page_token=rest.previous_page_token)
    assert back.models == first.models
    with pytest.raises(InvalidInput, match="not a cursor of this list"):
        await list_models(alice, page_token=first.next_page_token, sort_direction="asc")
    with pytest.raises(InvalidInput, match="page_size"):
        await list_models(alice, page_size=-1)


async def test_each_event_counts_its_runs_once(storage: StorageService) -> None:
    alice = storage.client("alice")
    for name in ("a", "b"):
        await create(alice, f"alice/{name}")
    models = ("alice/a", "alice/b", "alice/a", "alice/gone")
    event = events_pb2.PredictionsCompleted(
        event_id="e1",
        predictions=[events_pb2.CompletedPrediction(model=model) for model in models],
    )
    subscriber = storage.parts.subscriber
    await asyncio.gather(*(subscriber.count_runs(event) for _ in range(5)))
    await subscriber.count_runs(events_pb2.PredictionsCompleted(event_id="e2"))
    assert (await alice.get_model("alice/a")).run_count == 2
    assert (await alice.get_model("alice/b")).run_count == 1
    event.event_id = "e3"
    await subscriber.count_runs(event)
    assert (await alice.get_model("alice/a")).run_count == 4


async def test_ids_of_counted_events_are_kept_as_long_as_the_bus_may_repeat_them(
    storage: StorageService,
) -> None:
    alice = storage.client("alice")
    await create(alice, "alice/a")
    event = events_pb2.PredictionsCompleted(
        event_id="e1", predictions=[events_pb2.CompletedPrediction(model="alice/a")]
    )
    subscriber, clock = storage.parts.subscriber, storage.clock
    await subscriber.count_runs(event)
    clock.pass_s(7 * 86_400)
    await storage.parts.sweeper.sweep(clock())
    await subscriber.count_runs(event)
    assert (await alice.get_model("alice/a")).run_count == 1
    clock.pass_s(2 * 86_400)
    await storage.parts.sweeper.sweep(clock())
    await subscriber.count_runs(event)
    assert (await alice.get_model("alice/a")).run_count == 2
