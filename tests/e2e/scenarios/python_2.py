"""The pre-release of the official Python client, strict about the type of every field."""

import io
import json
import os
import warnings
from typing import Any

import replicate
from replicate import APIStatusError, Replicate
from replicate.exceptions import ModelError

ECHO, COUNTER = os.environ["ECHO"], os.environ["COUNTER"]
client = Replicate(_strict_response_validation=True)


def plain(value: Any) -> Any:
    return value.to_dict(mode="json")


def failure(call: Any) -> dict[str, Any]:
    try:
        call()
    except APIStatusError as error:
        return {"name": type(error).__name__, "status": error.status_code, "body": error.body}
    except ModelError as error:
        return {"name": type(error).__name__, "message": str(error)}
    raise AssertionError("the call succeeded")


def catalogue() -> dict[str, Any]:
    echo = {"model_owner": "local", "model_name": "echo"}
    return {
        "account": plain(client.account.get()),
        "hardware": [plain(item) for item in client.hardware.list()],
        "models": [f"{item.owner}/{item.name}" for item in client.models.list()],
        "model": plain(client.models.get(**echo)),
        "versions": [item.id for item in client.models.versions.list(**echo)],
        "version": plain(client.models.versions.get(version_id=ECHO, **echo)),
        "made": plain(
            client.models.create(
                owner="local", name="made-by-python-2", hardware="cpu", visibility="private"
            )
        ),
    }


def predictions() -> dict[str, Any]:
    waited = client.predictions.create(version=ECHO, input={"text": "waited"}, prefer="wait")
    by_model = client.models.predictions.create(
        model_owner="local", model_name="echo", input={"text": "by model"}, prefer="wait=30"
    )
    running = client.predictions.create(version=ECHO, input={"sleep_s": 50}, cancel_after="5m")
    return {
        "waited": plain(waited),
        "by_model": plain(by_model),
        "got": plain(client.predictions.get(prediction_id=waited.id)),
        "running": plain(running),
        "canceled": plain(client.predictions.cancel(prediction_id=running.id)),
        "listed": [item.id for item in client.predictions.list().results],
    }


def calls() -> dict[str, Any]:
    return {
        "run": client.run(f"local/echo:{ECHO}", input={"text": "run"}),
        "run_pieces": client.run("local/counter", input={"count": 3}),
        "run_file": client.run("local/mirror", input={"file": io.BytesIO(b"abc")}).read().decode(),
        # `use` of a client object is broken in this release; that of the module works.
        "use": replicate.use("local/echo")(text="used"),
        "use_version": replicate.use(f"local/counter:{COUNTER}")(count=3),
        "use_pieces": list(replicate.use("local/counter", streaming=True)(count=3)),
        "failure": failure(lambda: client.run("local/echo", input={"fail": "too sour"})),
        "wrong_input": failure(lambda: client.run("local/echo", input={"text": 5})),
        "no_model": failure(lambda: client.models.get(model_owner="local", model_name="nothing")),
        "no_trainings": failure(client.with_options(max_retries=0).trainings.list),
    }


def files() -> dict[str, Any]:
    made = client.files.create(
        content=b"hello",
        filename="a.txt",
        type="text/plain",
        metadata={"subject": {"of": "memory"}},
    )
    listed = [item.id for item in client.files.list()]
    got = client.files.get(file_id=made.id)
    client.files.delete(file_id=made.id)
    return {
        "made": plain(made),
        "is_listed": made.id in listed,
        "got": plain(got),
        "gone": failure(lambda: client.files.get(file_id=made.id)),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    report = {part.__name__: part() for part in (catalogue, predictions, calls, files)}
    os.write(1, json.dumps(report).encode())
