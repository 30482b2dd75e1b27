"""Pushes the three example models and runs each with the official Replicate client."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
REPRISE = str(Path(sys.executable).with_name("reprise"))
POLL_S = 0.05


@dataclass(frozen=True)
class Demo:
    """One model and one call of it."""

    name: str
    path: str
    config: str | None
    inputs: dict[str, Any]


DEMOS = (
    Demo(
        "smollm2",
        "smollm2",
        None,
        {"prompt": "What is the capital of France?", "max_tokens": 48},
    ),
    Demo("style-transfer", "style-transfer", None, {"image": Path("images/chelsea.jpg")}),
    Demo(
        "image-classifier",
        "image-classifier/model.onnx",
        "image-classifier/reprise.yaml",
        {"image": Path("images/chelsea.jpg"), "top_k": 3},
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="data folder of the running mesh")
    data = parser.parse_args().data
    state = json.loads(Path(data, "run.json").read_text())
    os.environ["REPLICATE_BASE_URL"] = state["url"]
    os.environ["REPLICATE_API_TOKEN"] = state["token"]
    if state["url"].startswith("https:"):
        os.environ["SSL_CERT_FILE"] = str(Path(state["data"], "tls", "ca.pem"))
    for demo in DEMOS:
        version = push(demo, data)
        show_run(demo, version, Path(state["data"]) / "demo")
    say(f"\nThe mesh is up. Look at it: {state['url']}/#token={state['token']}")
    say(f"Stop it with: make down    (logs: {state['data']}/logs)")


def push(demo: Demo, data: str) -> str:
    command = [REPRISE, "push", f"local/{demo.name}", str(ROOT / demo.path), "--data", data]
    if demo.config:
        command += ["--config", str(ROOT / demo.config)]
    say(f"\n== local/{demo.name}\n$ {' '.join(['reprise', *command[1:]])}")
    started = time.monotonic()
    answer = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=False)
    if answer.returncode:
        raise SystemExit(f"push of {demo.name} failed")
    version: str = json.loads(answer.stdout)["id"]
    say(f"version {version[:12]} after {time.monotonic() - started:.1f} s")
    return version


def show_run(demo: Demo, version: str, folder: Path) -> None:
    # Imported late: the client reads its environment when it is imported.
    import replicate

    say(f'>>> replicate.predictions.create(version="{version[:12]}…", input={demo.inputs})')
    files = {key: value for key, value in demo.inputs.items() if isinstance(value, Path)}
    opened = {key: (ROOT / value).open("rb") for key, value in files.items()}
    prediction = replicate.predictions.create(version=version, input=demo.inputs | opened)
    is_streamed = "stream" in prediction.urls
    if is_streamed:
        show_stream(prediction)
    else:
        prediction.wait()
    if prediction.status != "succeeded":
        raise SystemExit(f"{demo.name} {prediction.status}: {prediction.error}")
    if not is_streamed:
        show_output(prediction.output, folder)
    show_cost(prediction.id)


def show_stream(prediction: Any) -> None:
    """Shows the text as it comes, by server-sent events."""
    for event in prediction.stream():
        sys.stdout.write(str(event))
        sys.stdout.flush()
    say("")
    prediction.reload()


def show_output(output: Any, folder: Path) -> None:
    from replicate.helpers import transform_output

    output = transform_output(output, None)
    if hasattr(output, "read"):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "style-transfer.png"
        path.write_bytes(output.read())
        say(f"picture: {path} ({path.stat().st_size:,} bytes)")
    else:
        say(json.dumps(output, indent=2))


def show_cost(prediction_id: str) -> None:
    """The receipt follows the result within milliseconds."""
    import replicate

    client = replicate.default_client
    deadline = time.monotonic() + 10
    while True:
        body = client._request("GET", f"/v1/predictions/{prediction_id}").json()
        cost = body["cost"]
        if cost["status"] != "held" or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    paid = (cost["captured_amount_micros"] or 0) / 1e6
    say(
        f"price: {paid:.6f} USD for {cost['charged_ms']} ms on {cost['hardware']} "
        f"(at most {cost['held_amount_micros'] / 1e6:.6f}), ledger entry {cost['ledger_entry_id']}"
    )
    say(f"page: {body['urls']['web']}")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
