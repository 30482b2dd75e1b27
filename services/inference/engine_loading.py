"""Engine versions: proved in a host of their own, served by the worker's host."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprise.inference.v1 import engine_pb2

from services.chassis.errors import InvalidInput, ResourceExhausted
from services.inference.artifacts import ArtifactCache
from services.inference.cog.errors import InputRejected, RunnerBusy
from services.inference.cog.events import Completed, Event, Started, Status
from services.inference.engine_supervisor import EngineHost, EngineHostSpec, HostDied
from services.inference.loaded_model import LoadedModel, LoadFailed
from services.inference.prediction_files import FileContent, parse_data_uri
from services.inference.versions import Version

if TYPE_CHECKING:
    from inference_core import TensorSpec
    from services.inference.adapters import Adapter

CONFIG_FILE = "reprise.yaml"
# Labels and the like; weights beside the model are larger and not the adapter's.
_SIDE_FILE_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineProof:
    """What a build found out about an engine."""

    openapi_schema: dict[str, Any]
    runtime: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`slot_count` calls run at a time, merged up to `max_batch_size`."""

    slot_count: int
    max_batch_size: int


class EngineLoader:
    """Adapters and their libraries are imported with the first engine, not before."""

    def __init__(
        self,
        *,
        artifacts: ArtifactCache,
        host: EngineHost,
        host_spec: EngineHostSpec,
        options: EngineOptions,
    ) -> None:
        self._artifacts = artifacts
        self._host = host
        self._host_spec = host_spec
        self._options = options

    async def prove(self, folder: Path, paths: Sequence[str]) -> EngineProof:
        """Compiles the folder's model and compares it with the reference. Raises InvalidInput."""
        # A host of its own: a file that crashes a compiler must not take serving engines along.
        host = EngineHost(self._host_spec)
        try:
            loaded = await self._load_into(host, "build", folder, paths)
            adapter = await asyncio.to_thread(_adapter, folder, loaded)
        except InvalidInput as error:
            raise InvalidInput(
                f"{find_onnx(paths)}: {error.message}", reason=error.reason, fields=error.fields
            ) from error
        except HostDied as error:
            raise InvalidInput(
                f"the model makes its compiler crash ({error.ending}); export it in another way",
                reason="MODEL_REFUSED",
            ) from error
        finally:
            await host.stop()
        return EngineProof(
            openapi_schema=adapter.openapi_schema(),
            runtime=loaded.runtime,
            remarks=tuple(loaded.remarks),
        )

    async def load(self, version: Version) -> LoadedModel:
        """Raises LoadFailed."""
        folder = await self._artifacts.version_dir(version.spec)
        paths = [file.path for file in version.spec.files]
        try:
            loaded = await self._load_into(self._host, version.id, folder, paths)
            adapter = await asyncio.to_thread(_adapter, folder, loaded)
        except InvalidInput as error:
            raise LoadFailed(error.message, is_models_fault=True) from error
        return EngineModel(
            version.id, host=self._host, loaded=loaded, adapter=adapter, options=self._options
        )

    async def _load_into(
        self, host: EngineHost, version_id: str, folder: Path, paths: Sequence[str]
    ) -> engine_pb2.LoadEngineResponse:
        return await host.load(
            version_id,
            folder / find_onnx(paths),
            max_batch_size=self._options.max_batch_size,
        )


def find_onnx(paths: Sequence[str]) -> str:
    """The one ONNX file of a version. Raises InvalidInput."""
    found = [path for path in paths if path.lower().endswith(".onnx")]
    if len(found) == 1:
        return found[0]
    if "model.onnx" in found:
        return "model.onnx"
    problem = f"{len(found)} .onnx files" if found else "no .onnx file"
    raise InvalidInput(f"files: {problem}; an engine version has one, or one named model.onnx")


class EngineModel:
    """One engine in the host; every call is a request of its own, and the host merges them."""

    def __init__(
        self,
        version_id: str,
        *,
        host: EngineHost,
        loaded: engine_pb2.LoadEngineResponse,
        adapter: "Adapter",
        options: EngineOptions,
    ) -> None:
        self.concurrency = options.slot_count
        self.signature = loaded
        self._version_id = version_id
        self._host = host
        self._adapter = adapter
        self._calls: dict[str, asyncio.Task[Any]] = {}

    @property
    def crash(self) -> str | None:
        # The host that holds it is watched and restarted by its supervisor.
        return None

    async def predict(
        self, prediction_id: str, prediction_input: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """Raises InputRejected, RunnerBusy, or Unavailable when the host died."""
        yield Started()
        call = asyncio.create_task(self._answer(prediction_input))
        self._calls[prediction_id] = call
        try:
            await asyncio.wait({call})
            if call.cancelled():
                yield Completed(Status.CANCELED)
            else:
                yield Completed(Status.SUCCEEDED, output=call.result())
        finally:
            call.cancel()
            del self._calls[prediction_id]

    async def infer(self, inputs: Sequence[engine_pb2.Tensor]) -> Sequence[engine_pb2.Tensor]:
        """Tensors in, tensors out; raises InvalidInput, RunnerBusy or Unavailable."""
        try:
            answer = await self._host.run(self._version_id, inputs)
        except ResourceExhausted as error:
            raise RunnerBusy(error.message) from error
        return answer.outputs

    async def cancel(self, prediction_id: str) -> bool:
        call = self._calls.get(prediction_id)
        return call is not None and call.cancel()

    async def stop(self, *, grace_s: float | None = None) -> None:
        if self._calls and grace_s:
            await asyncio.wait(list(self._calls.values()), timeout=grace_s)
        for call in list(self._calls.values()):
            call.cancel()
        await self._host.unload(self._version_id)

    async def _answer(self, prediction_input: Mapping[str, Any]) -> Any:
        try:
            inputs = await asyncio.to_thread(self._to_messages, prediction_input)
            outputs = await self.infer(inputs)
        except InvalidInput as error:
            raise InputRejected([error.message]) from error
        return await asyncio.to_thread(self._from_messages, outputs, prediction_input)

    def _to_messages(self, prediction_input: Mapping[str, Any]) -> list[engine_pb2.Tensor]:
        from services.inference import tensors

        values = dict(prediction_input)
        for name in self._adapter.image_inputs & values.keys():
            values[name] = _bytes_of(name, values[name])
        return tensors.to_messages(self._adapter.to_tensors(values))

    def _from_messages(
        self, outputs: Sequence[engine_pb2.Tensor], prediction_input: Mapping[str, Any]
    ) -> Any:
        from services.inference import tensors

        arrays = tensors.to_arrays(outputs)
        return _with_data_uris(self._adapter.from_tensors(arrays, prediction_input))


def _bytes_of(name: str, value: Any) -> bytes:
    if not isinstance(value, str) or not value.startswith("data:"):
        raise InvalidInput(f"{name}: a file must be given as an upload, a data: or an http(s) URL")
    try:
        return parse_data_uri(value).content
    except ValueError as error:
        raise InvalidInput(f"{name}: {error}") from None


def _with_data_uris(value: Any) -> Any:
    """The same form in which a cog model gives its files."""
    if isinstance(value, FileContent):
        return value.data_uri()
    if isinstance(value, dict):
        return {name: _with_data_uris(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_data_uris(item) for item in value]
    return value


def _adapter(folder: Path, loaded: engine_pb2.LoadEngineResponse) -> "Adapter":
    """Raises InvalidInput for a reprise.yaml that does not fit the engine."""
    from inference_core import Signature
    from services.inference.adapters import load_adapter

    signature = Signature(
        inputs=tuple(_spec(spec) for spec in loaded.inputs),
        outputs=tuple(_spec(spec) for spec in loaded.outputs),
    )
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix != ".onnx" and path.is_file() and path.stat().st_size <= _SIDE_FILE_MAX_BYTES
    }
    return load_adapter(files.get(CONFIG_FILE), signature, files)


def _spec(spec: engine_pb2.TensorSpec) -> "TensorSpec":
    from inference_core import Dtype, TensorSpec

    shape = tuple(None if size < 0 else size for size in spec.shape)
    return TensorSpec(name=spec.name, dtype=Dtype(spec.dtype), shape=shape)
