"""gRPC methods of predictions and hardware."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from reprise.scheduler.v1 import (
    hardware_pb2,
    hardware_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
)

from services.chassis import channels
from services.chassis.clock import SECOND_US
from services.chassis.errors import InvalidInput, NotFound, invalid_field
from services.chassis.paging import (
    bounded_page_size,
    decode_cursor,
    is_stored_integer,
    slice_page,
)
from services.chassis.server import caller
from services.scheduler import event_stream
from services.scheduler.admission import Application, read_request, to_record
from services.scheduler.dispatch import Dispatcher
from services.scheduler.fleet import Fleet
from services.scheduler.intake import Intake
from services.scheduler.live import LivePrediction, LivePredictions
from services.scheduler.record import PredictionRecord, timed_out_wait, to_message
from services.scheduler.runs import Runs
from services.scheduler.settings import SchedulerSettings
from services.scheduler.store import Filters, PredictionStore, record_of
from services.scheduler.versions import KnownVersion, Versions, invalid_version

PAGE_SIZE = 100
# Watchers look up this often even when nothing is told to them.
_WATCH_PERIOD_S = 30.0
# Characters of an input that takes noticeable time to check.
_LARGE_INPUT = 256 * 1024
_HARDWARE_NAMES = {"cpu": "CPU"}


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    """Predictions of the calling account."""

    def __init__(
        self,
        *,
        settings: SchedulerSettings,
        store: PredictionStore,
        predictions: LivePredictions,
        versions: Versions,
        intake: Intake,
        runs: Runs,
        dispatcher: Dispatcher,
    ) -> None:
        self._settings = settings
        self._store = store
        self._predictions = predictions
        self._versions = versions
        self._intake = intake
        self._runs = runs
        self._dispatcher = dispatcher
        self._stream_key = settings.mesh_key.encode()

    async def CreatePrediction(
        self, request: prediction_pb2.CreatePredictionRequest, context: Any
    ) -> prediction_pb2.CreatePredictionResponse:
        who = caller(context)
        application = read_request(
            request,
            account_id=who.account_id,
            request_id=who.request_id,
            settings=self._settings,
        )
        if not self._is_known(application.prediction_id):
            version = await self._resolve(application, is_named_by_path=not request.version)
            # A repeat may have been faster meanwhile.
            if not self._is_known(application.prediction_id):
                await self._apply(application, version)
        live = self._predictions.get(application.prediction_id)
        if live is None:
            # Shielded: a caller that goes away cancels nothing.
            live = await asyncio.shield(self._intake.outcome(application.prediction_id))
        has_ended = await live.wait_end(application.wait_s)
        message = self._message(live)
        if application.wait_s and not has_ended:
            message = timed_out_wait(message)
        return prediction_pb2.CreatePredictionResponse(prediction=message)

    async def GetPrediction(
        self, request: prediction_pb2.GetPredictionRequest, context: Any
    ) -> prediction_pb2.GetPredictionResponse:
        live = await self._find(request.prediction_id, caller(context).account_id)
        return prediction_pb2.GetPredictionResponse(prediction=self._message(live))

    async def ListPredictions(
        self, request: prediction_pb2.ListPredictionsRequest, context: Any
    ) -> prediction_pb2.ListPredictionsResponse:
        page = await self._store.list_page(
            _filters_of(request, caller(context).account_id),
            page_token=request.page_token,
            page_size=_page_size(request.page_size),
        )
        return prediction_pb2.ListPredictionsResponse(
            predictions=[self._listed(record_of(row)) for row in page.rows],
            next_page_token=page.next_page_token,
            previous_page_token=page.previous_page_token,
        )

    async def CancelPrediction(
        self, request: prediction_pb2.CancelPredictionRequest, context: Any
    ) -> prediction_pb2.CancelPredictionResponse:
        live = await self._find(request.prediction_id, caller(context).account_id)
        if not live.is_done:
            await self._runs.cancel(live)
        return prediction_pb2.CancelPredictionResponse(prediction=self._message(live))

    async def WatchPrediction(
        self, request: prediction_pb2.WatchPredictionRequest, context: Any
    ) -> AsyncIterator[prediction_pb2.WatchPredictionResponse]:
        live = await self._find(request.prediction_id, caller(context).account_id)
        while True:
            is_done, seen_count = live.is_done, live.change_count
            yield prediction_pb2.WatchPredictionResponse(prediction=self._message(live))
            if is_done:
                return
            while not await live.wait_change(seen_count, _WATCH_PERIOD_S):
                pass

    async def StreamPrediction(
        self, request: prediction_pb2.StreamPredictionRequest, context: Any
    ) -> AsyncIterator[prediction_pb2.StreamPredictionResponse]:
        prediction_id = event_stream.prediction_of_token(request.stream_token, self._stream_key)
        index = event_stream.next_index(request.last_event_id)
        live = self._predictions.get(prediction_id)
        if live is None:
            stored = await self._store.get(prediction_id)
            live = self._predictions.get(prediction_id) or _ended(stored)
        created_at = live.record.created_at
        if live.record.has_file_output:
            # The gateway signs the files' URLs in their owner's name.
            await context.send_initial_metadata(((channels.ACCOUNT, live.record.account_id),))
        while not live.is_done:
            # The items grow while events are being sent: what came later is for the next round.
            seen_count, items = live.change_count, live.shown_items
            item_count = len(items)
            for event in event_stream.output_events(items, start=index, created_at=created_at):
                yield event
            index = max(index, item_count)
            await live.wait_change(seen_count, _WATCH_PERIOD_S)
        items = live.items or event_stream.split_items(live.record.output)
        for event in event_stream.output_events(items, start=index, created_at=created_at):
            yield event
        for event in event_stream.end_events(
            status=live.record.status,
            error=live.record.error,
            item_count=len(items),
            start=index,
            created_at=created_at,
        ):
            yield event

    async def _resolve(self, application: Application, *, is_named_by_path: bool) -> KnownVersion:
        try:
            return await self._versions.resolve(application.account_id, application.reference)
        except (NotFound, InvalidInput) as error:
            if is_named_by_path:
                raise
            raise invalid_version(error.message) from error

    def _is_known(self, prediction_id: str) -> bool:
        return prediction_id in self._predictions or prediction_id in self._intake

    async def _apply(self, application: Application, version: KnownVersion) -> None:
        if len(application.input) < _LARGE_INPUT:
            self._intake.apply(to_record(application, version, self._settings))
            return
        # A large input is checked beside the loop that everybody else needs.
        record = await asyncio.to_thread(to_record, application, version, self._settings)
        if not self._is_known(record.id):
            self._intake.apply(record)

    async def _find(self, prediction_id: str, account_id: str) -> LivePrediction:
        live = self._predictions.get(prediction_id)
        if live is None:
            stored = await self._store.get(prediction_id)
            # Admitted while the database was asked: memory knows more than the row.
            live = self._predictions.get(prediction_id) or _ended(stored)
        if live.record.account_id != account_id:
            raise NotFound("there is no such prediction of yours")
        return live

    def _message(self, live: LivePrediction) -> prediction_pb2.Prediction:
        message = live.message(self._stream_key)
        if not live.is_done and (card := self._dispatcher.queue_card(live.record)) is not None:
            message.queue.CopyFrom(card)
        return message

    def _listed(self, record: PredictionRecord) -> prediction_pb2.Prediction:
        live = self._predictions.get(record.id)
        return self._message(live) if live is not None else to_message(record, self._stream_key)


class HardwareServicer(hardware_pb2_grpc.HardwareServiceServicer):
    """What the connected workers offer."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def ListHardware(
        self, request: hardware_pb2.ListHardwareRequest, context: Any
    ) -> hardware_pb2.ListHardwareResponse:
        skus = {worker.hardware for worker in self._fleet.workers.values() if worker.hardware}
        return hardware_pb2.ListHardwareResponse(
            hardware=[
                hardware_pb2.Hardware(sku=sku, name=_HARDWARE_NAMES.get(sku, sku))
                for sku in sorted(skus | {"cpu"})
            ]
        )

    async def ListWorkers(
        self, request: hardware_pb2.ListWorkersRequest, context: Any
    ) -> hardware_pb2.ListWorkersResponse:
        page = slice_page(
            self._fleet.workers.values(),
            key=lambda worker: (worker.worker_id,),
            page_token=request.page_token,
            page_size=_page_size(request.page_size),
            label="workers",
        )
        return hardware_pb2.ListWorkersResponse(
            workers=[
                hardware_pb2.Worker(
                    id=worker.worker_id,
                    hardware=worker.hardware,
                    replica_count=len(worker.replicas),
                    replica_count_max=worker.replica_count_max,
                    running_count=len(worker.granted),
                    isolation=worker.isolation,
                )
                for worker in page.items
            ],
            next_page_token=page.next_page_token,
        )


def _ended(stored: PredictionRecord | None) -> LivePrediction:
    if stored is None:
        raise NotFound("there is no such prediction of yours")
    return LivePrediction(stored)


def _page_size(page_size: int) -> int:
    return bounded_page_size(page_size, default=PAGE_SIZE, maximum=PAGE_SIZE)


def _micros(at: Timestamp) -> int:
    # Not ToMicroseconds(): it raises for what a caller of gRPC may send.
    return at.seconds * SECOND_US + at.nanos // 1000


def _filters_of(request: prediction_pb2.ListPredictionsRequest, account_id: str) -> Filters:
    """What a cursor kept of the filters of its list goes before what the request says."""
    after = _micros(request.created_after) if request.HasField("created_after") else None
    before = _micros(request.created_before) if request.HasField("created_before") else None
    kept = decode_cursor(request.page_token)
    after, before = kept.get("after", after), kept.get("before", before)
    for name, limit in (("created_after", after), ("created_before", before)):
        if limit is not None and not is_stored_integer(limit):
            raise invalid_field(name, "is no time that a prediction can have")
    return Filters(
        account_id=account_id,
        created_after=after,
        created_before=before,
        source=str(kept.get("source", request.source)),
    )
