"""Triton's own client on the tensor port."""

import json
import os
from typing import Any

import numpy as np
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

MODEL, VERSION, COG_MODEL = os.environ["MODEL"], os.environ["VERSION"], "local/echo"
TOKEN = {"authorization": f"Bearer {os.environ['REPLICATE_API_TOKEN']}"}
client = triton.InferenceServerClient(os.environ["OIP"])

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([[1], [10]], np.int64)


def tensor(name: str, values: np.ndarray) -> triton.InferInput:
    filled = triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
    filled.set_data_from_numpy(values)
    return filled


def infer(
    model: str = MODEL,
    *,
    a: np.ndarray = A,
    b: np.ndarray = B,
    a_name: str = "a",
    headers: dict[str, str] = TOKEN,
    **options: Any,
) -> triton.InferResult:
    return client.infer(model, [tensor(a_name, a), tensor("b", b)], headers=headers, **options)


def failure(**options: Any) -> dict[str, str]:
    try:
        infer(**options)
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    raise AssertionError("the call succeeded")


def outputs(result: triton.InferResult) -> dict[str, Any]:
    response = result.get_response()
    return {
        "version": response.model_version,
        "id": response.id,
        "tensors": {item.name: result.as_numpy(item.name).tolist() for item in response.outputs},
        "datatypes": {item.name: item.datatype for item in response.outputs},
    }


def server() -> dict[str, Any]:
    return {
        "is_live": client.is_server_live(),
        "is_ready": client.is_server_ready(),
        "metadata": client.get_server_metadata(as_json=True),
    }


def model() -> dict[str, Any]:
    return {
        "metadata": client.get_model_metadata(MODEL, headers=TOKEN, as_json=True),
        # The metadata loaded it.
        "is_ready": client.is_model_ready(MODEL, headers=TOKEN),
    }


def inference() -> dict[str, Any]:
    picked = [triton.InferRequestedOutput("sum")]
    return {
        "whole": outputs(infer(request_id="mine")),
        "of_version": outputs(infer(model_version=VERSION)),
        "picked": outputs(infer(outputs=picked)),
    }


def refusals() -> dict[str, Any]:
    return {
        "wrong_token": failure(headers={"authorization": "Bearer rp_wrong"}),
        "no_token": failure(headers={}),
        "unknown_model": failure(model="local/nothing"),
        "cog_model": failure(model=COG_MODEL),
        "wrong_shape": failure(a=A[:, :2].copy()),
        "other_batch": failure(b=B[:1].copy()),
        "wrong_dtype": failure(a=A.astype(np.float64)),
        "wrong_name": failure(a_name="q"),
        "unknown_output": failure(outputs=[triton.InferRequestedOutput("sums")]),
    }


if __name__ == "__main__":
    report = {part.__name__: part() for part in (server, model, inference, refusals)}
    os.write(1, json.dumps(report).encode())
