"""OpenVINO on the CPU, run by the native executor."""

import os
from importlib.metadata import version

from inference_core.backends import ExecutorOptions, Loadable
from inference_core.engine import Precision
from inference_core.errors import UnsupportedModelError
from inference_core.executor import Executor, ModelLoadError


class OpenVinoBackend:
    """The first choice on CPUs."""

    name = "openvino"
    merges_requests = True

    @property
    def version(self) -> str:
        return version("openvino")

    async def open(self, loadable: Loadable, options: ExecutorOptions) -> Executor:
        try:
            return await Executor.open_openvino(
                str(loadable.onnx_path),
                input_names=[spec.name for spec in loadable.signature.inputs],
                output_names=[spec.name for spec in loadable.signature.outputs],
                properties=_properties(loadable.target.precision, options),
                max_batch_size=loadable.max_batch_size,
                max_queue_delay_us=options.max_queue_delay_us,
                queue_limit=options.queue_limit,
                lane_count=options.lane_count,
            )
        except ModelLoadError as error:
            raise UnsupportedModelError(str(error)) from error


def _properties(precision: Precision, options: ExecutorOptions) -> dict[str, str]:
    threads = options.thread_count or len(os.sched_getaffinity(0))
    # Several engines share the cores, so none may pin its threads. No CACHE_DIR: importing a blob
    # takes about as long as compiling, and forgets the precision hint.
    return {
        "INFERENCE_PRECISION_HINT": precision.value,
        "ENABLE_CPU_PINNING": "NO",
        "NUM_STREAMS": "1" if options.favors_latency else str(threads),
        "INFERENCE_NUM_THREADS": str(threads),
    }
