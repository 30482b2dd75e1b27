"""Runs a prediction from the command line: inputs typed by the schema, outputs to files."""

import asyncio
import json
import mimetypes
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from reprise.scheduler.v1 import prediction_pb2
from reprise.storage.v1 import file_pb2, model_pb2
from reprise.wire.v1 import json_pb2

from cli.client import CallFailed, Client

CHUNK_SIZE = 256 * 1024
FILE_PREFIX = "reprise-file:"
FINAL = (
    prediction_pb2.PREDICTION_STATUS_SUCCEEDED,
    prediction_pb2.PREDICTION_STATUS_FAILED,
    prediction_pb2.PREDICTION_STATUS_CANCELED,
)
FILE_TIMEOUT_S = 600.0
RECEIPT_TIMEOUT_S = 5.0
RECEIPT_POLL_S = 0.02


def split_reference(reference: str) -> tuple[str, str, str]:
    """owner, name and version ("" for the latest) of owner/name[:version]."""
    model, _, version = reference.partition(":")
    owner, _, name = model.partition("/")
    if not owner or not name or "/" in name:
        raise CallFailed(f"{reference}: not a model; write owner/name or owner/name:version")
    return owner, name, version


async def input_schema(client: Client, reference: str) -> dict[str, Any]:
    """The properties of a version's input."""
    owner, name, version_id = split_reference(reference)
    if version_id:
        request = model_pb2.GetVersionRequest(owner=owner, name=name, version_id=version_id)
        version = (await client.call(client.models.GetVersion, request)).version
    else:
        model_request = model_pb2.GetModelRequest(owner=owner, name=name)
        model = (await client.call(client.models.GetModel, model_request)).model
        if not model.HasField("latest_version"):
            raise CallFailed(f"{reference} has no version yet; push one with `reprise push`")
        version = model.latest_version
    schemas = json.loads(version.openapi_schema.text)["components"]["schemas"]
    properties: dict[str, Any] = schemas["Input"].get("properties", {})
    return {key: _resolve(value, schemas) for key, value in properties.items()}


def _resolve(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    for part in schema.get("allOf", []):
        schema = schemas[part["$ref"].rpartition("/")[2]] | schema
    return schema


async def read_inputs(
    client: Client, arguments: list[str], properties: dict[str, Any]
) -> dict[str, Any]:
    """key=value arguments as the schema types them; key=@path uploads the file."""
    inputs: dict[str, Any] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise CallFailed(f"{argument}: write inputs as name=value, files as name=@path")
        if key not in properties:
            known = ", ".join(properties) or "none"
            raise CallFailed(f"{key}: the model has no such input; it has: {known}")
        if value.startswith("@"):
            inputs[key] = FILE_PREFIX + await upload(client, Path(value[1:]))
        else:
            inputs[key] = typed(key, value, properties[key].get("type", ""))
    return inputs


def typed(key: str, value: str, json_type: str) -> Any:
    """The text of an argument as the schema's type."""
    if json_type in ("", "string"):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        raise CallFailed(f"{key}: {value!r} is not of type {json_type}") from None


async def upload(client: Client, path: Path) -> str:
    """Stores a file with the server; returns its id."""
    if not path.is_file():
        raise CallFailed(f"{path}: no such file")
    answer = await client.call(client.files.CreateFile, _file_parts(path), FILE_TIMEOUT_S)
    file_id: str = answer.file.id
    return file_id


async def _file_parts(path: Path) -> AsyncIterator[file_pb2.CreateFileRequest]:
    content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    header = file_pb2.FileHeader(name=path.name, content_type=content_type)
    yield file_pb2.CreateFileRequest(header=header)
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_SIZE):
            yield file_pb2.CreateFileRequest(chunk=chunk)


async def create(
    client: Client, reference: str, inputs: dict[str, Any]
) -> prediction_pb2.Prediction:
    request = prediction_pb2.CreatePredictionRequest(
        version=reference, input=json_pb2.Json(text=json.dumps(inputs))
    )
    answer: prediction_pb2.CreatePredictionResponse = await client.call(
        client.predictions.CreatePrediction, request
    )
    return answer.prediction


async def follow(
    client: Client,
    prediction: prediction_pb2.Prediction,
    on_change: Callable[[prediction_pb2.Prediction], None],
) -> prediction_pb2.Prediction:
    """Tells each change of a prediction; returns it once it has ended."""
    on_change(prediction)
    request = prediction_pb2.WatchPredictionRequest(prediction_id=prediction.id)
    async for message in client.stream(client.predictions.WatchPrediction, request):
        prediction = message.prediction
        on_change(prediction)
    if prediction.status not in FINAL:
        raise CallFailed(
            f"the watch on {prediction.id} ended early; look with `reprise predictions`"
        )
    return prediction


async def settled(
    client: Client, prediction: prediction_pb2.Prediction
) -> prediction_pb2.Prediction:
    """The prediction with its receipt, which follows its end within milliseconds."""
    request = prediction_pb2.GetPredictionRequest(prediction_id=prediction.id)
    deadline = time.monotonic() + RECEIPT_TIMEOUT_S
    while prediction.cost.status == prediction_pb2.COST_STATUS_HELD:
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(RECEIPT_POLL_S)
        prediction = (await client.call(client.predictions.GetPrediction, request)).prediction
    return prediction


async def save_files(client: Client, output: Any, folder: Path) -> Any:
    """The output with each stored file downloaded and named by its path."""
    if isinstance(output, str) and output.startswith(FILE_PREFIX):
        return str(await _download(client, output.removeprefix(FILE_PREFIX), folder))
    if isinstance(output, list):
        return [await save_files(client, item, folder) for item in output]
    if isinstance(output, dict):
        return {key: await save_files(client, item, folder) for key, item in output.items()}
    return output


async def _download(client: Client, file_id: str, folder: Path) -> Path:
    record = await client.call(client.files.GetFile, file_pb2.GetFileRequest(file_id=file_id))
    folder.mkdir(parents=True, exist_ok=True)
    path = _unused(folder / Path(record.file.name or file_id).name)
    request = file_pb2.DownloadFileRequest(file_id=file_id)
    try:
        with path.open("wb") as file:
            async for message in client.stream(client.files.DownloadFile, request):
                file.write(message.body.data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _unused(path: Path) -> Path:
    candidate = path
    number = 1
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return candidate
