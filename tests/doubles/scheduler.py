"""A PredictionService whose predictions end as the test says, kept in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from reprise.scheduler.v1 import (
    hardware_pb2,
    hardware_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
)
from reprise.wire.v1 import json_pb2

from services.chassis import channels, errors

FINAL = (
    prediction_pb2.PREDICTION_STATUS_SUCCEEDED,
    prediction_pb2.PREDICTION_STATUS_FAILED,
    prediction_pb2.PREDICTION_STATUS_CANCELED,
)


class FakeScheduler(
    prediction_pb2_grpc.PredictionServiceServicer, hardware_pb2_grpc.HardwareServiceServicer
):
    """Answers every create with `output` at once, or leaves it waiting when output is None."""

    def __init__(self, output: str | None = '"ok"', stream_items: tuple[str, ...] = ()) -> None:
        self.output = output
        self.stream_items = stream_items
        self.requests: list[prediction_pb2.CreatePredictionRequest] = []
        self.request_ids: list[str] = []
        self.predictions: dict[str, prediction_pb2.Prediction] = {}
        self.owners: dict[str, str] = {}
        # While set, every create fails with it.
        self.error: errors.RepriseError | None = None
        self._changed = asyncio.Condition()

    def add_to(self, server: grpc.aio.Server) -> None:
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(self, server)
        hardware_pb2_grpc.add_HardwareServiceServicer_to_server(self, server)

    async def finish(self, prediction_id: str, output: str) -> None:
        """Ends a waiting prediction with this output."""
        prediction = self.predictions[prediction_id]
        prediction.status = prediction_pb2.PREDICTION_STATUS_SUCCEEDED
        prediction.output.text = output
        prediction.completed_at.CopyFrom(_now())
        async with self._changed:
            self._changed.notify_all()

    async def CreatePrediction(
        self, request: prediction_pb2.CreatePredictionRequest, context: Any
    ) -> prediction_pb2.CreatePredictionResponse:
        metadata = dict(context.invocation_metadata())
        self.requests.append(request)
        self.request_ids.append(metadata.get(channels.REQUEST_ID, ""))
        if self.error is not None:
            await _abort(context, self.error)
        prediction_id = f"p{len(self.predictions):025d}"
        prediction = self._new(prediction_id, request)
        self.predictions[prediction_id] = prediction
        self.owners[prediction_id] = metadata.get(channels.ACCOUNT, "")
        if self.output is not None:
            await self.finish(prediction_id, self.output)
        elif request.HasField("wait"):
            await self._wait_end(prediction, request.wait.ToTimedelta().total_seconds())
        return prediction_pb2.CreatePredictionResponse(prediction=prediction)

    async def GetPrediction(
        self, request: prediction_pb2.GetPredictionRequest, context: Any
    ) -> prediction_pb2.GetPredictionResponse:
        prediction = await self._own(request.prediction_id, context)
        return prediction_pb2.GetPredictionResponse(prediction=prediction)

    async def ListPredictions(
        self, request: prediction_pb2.ListPredictionsRequest, context: Any
    ) -> prediction_pb2.ListPredictionsResponse:
        account_id = dict(context.invocation_metadata()).get(channels.ACCOUNT, "")
        own = [item for key, item in self.predictions.items() if self.owners[key] == account_id]
        start = int(request.page_token or 0)
        size = request.page_size or 100
        page = own[::-1][start : start + size]
        return prediction_pb2.ListPredictionsResponse(
            predictions=page,
            next_page_token=str(start + size) if len(own) > start + size else "",
            previous_page_token=str(start - size) if start >= size else "",
        )

    async def CancelPrediction(
        self, request: prediction_pb2.CancelPredictionRequest, context: Any
    ) -> prediction_pb2.CancelPredictionResponse:
        prediction = await self._own(request.prediction_id, context)
        if prediction.status not in FINAL:
            prediction.status = prediction_pb2.PREDICTION_STATUS_CANCELED
            prediction.completed_at.CopyFrom(_now())
            async with self._changed:
                self._changed.notify_all()
        return prediction_pb2.CancelPredictionResponse(prediction=prediction)

    async def WatchPrediction(
        self, request: prediction_pb2.WatchPredictionRequest, context: Any
    ) -> AsyncIterator[prediction_pb2.WatchPredictionResponse]:
        prediction = await self._own(request.prediction_id, context)
        yield prediction_pb2.WatchPredictionResponse(prediction=prediction)
        if prediction.status not in FINAL:
            await self._wait_end(prediction, 60)
            yield prediction_pb2.WatchPredictionResponse(prediction=prediction)

    async def StreamPrediction(
        self, request: prediction_pb2.StreamPredictionRequest, context: Any
    ) -> AsyncIterator[prediction_pb2.StreamPredictionResponse]:
        if request.stream_token not in {f"token-{key}" for key in self.predictions}:
            await _abort(context, errors.NotFound("there is no such stream"))
        seen = int(request.last_event_id.partition(":")[2]) + 1 if request.last_event_id else 0
        events = [("output", text) for text in self.stream_items] + [("done", "{}")]
        for index, (event, data) in list(enumerate(events))[seen:]:
            yield prediction_pb2.StreamPredictionResponse(
                id=f"1700000000:{index}", event=event, data=data
            )

    async def ListHardware(
        self, request: hardware_pb2.ListHardwareRequest, context: Any
    ) -> hardware_pb2.ListHardwareResponse:
        return hardware_pb2.ListHardwareResponse(
            hardware=[hardware_pb2.Hardware(sku="cpu", name="CPU")]
        )

    async def ListWorkers(
        self, request: hardware_pb2.ListWorkersRequest, context: Any
    ) -> hardware_pb2.ListWorkersResponse:
        return hardware_pb2.ListWorkersResponse(
            workers=[hardware_pb2.Worker(id="w1", hardware="cpu", replica_count_max=4)]
        )

    async def _wait_end(self, prediction: prediction_pb2.Prediction, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: prediction.status in FINAL)
        except TimeoutError:
            return

    async def _own(self, prediction_id: str, context: Any) -> prediction_pb2.Prediction:
        account_id = dict(context.invocation_metadata()).get(channels.ACCOUNT, "")
        if self.owners.get(prediction_id) != account_id:
            await _abort(context, errors.NotFound("there is no such prediction"))
        return self.predictions[prediction_id]

    def _new(
        self, prediction_id: str, request: prediction_pb2.CreatePredictionRequest
    ) -> prediction_pb2.Prediction:
        path = f"/v1/predictions/{prediction_id}"
        urls = {"get": path, "cancel": f"{path}/cancel", "web": f"/p/{prediction_id}"}
        if self.stream_items:
            urls["stream"] = f"/v1/streams/token-{prediction_id}"
        return prediction_pb2.Prediction(
            id=prediction_id,
            model=_model_of(request),
            version="0" * 64,
            input=request.input if request.HasField("input") else json_pb2.Json(text="{}"),
            status=prediction_pb2.PREDICTION_STATUS_STARTING,
            created_at=_now(),
            metrics=json_pb2.Json(text="{}"),
            source="api",
            urls=urls,
        )


def _model_of(request: prediction_pb2.CreatePredictionRequest) -> str:
    if request.model_owner:
        return f"{request.model_owner}/{request.model_name}"
    return request.version.partition(":")[0] if "/" in request.version else "acme/echo"


def _now() -> Timestamp:
    return Timestamp(seconds=int(time.time()))


async def _abort(context: Any, error: errors.RepriseError) -> None:
    context.set_trailing_metadata(((errors.DETAILS_KEY, errors.to_details(error)),))
    await context.abort(error.status, error.message)
