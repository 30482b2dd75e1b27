"""Arrays to tensor messages of the engine host and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from reprise.inference.v1 import engine_pb2

from services.chassis.errors import InvalidInput

Array = npt.NDArray[Any]


def to_array(tensor: engine_pb2.Tensor) -> Array:
    """Without a copy, read-only. Raises InvalidInput."""
    try:
        array = np.frombuffer(tensor.content, dtype=np.dtype(tensor.dtype))
        return array.reshape(tuple(tensor.shape))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"tensor '{tensor.name}': {error}") from None


def to_arrays(messages: Iterable[engine_pb2.Tensor]) -> dict[str, Array]:
    return {message.name: to_array(message) for message in messages}


def to_message(name: str, array: Array) -> engine_pb2.Tensor:
    return engine_pb2.Tensor(
        name=name, dtype=array.dtype.name, shape=array.shape, content=array.tobytes()
    )


def to_messages(arrays: Mapping[str, Array]) -> list[engine_pb2.Tensor]:
    return [to_message(name, array) for name, array in arrays.items()]
