"""What each client command does, once a client is connected."""

import asyncio
import json
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path

from reprise.billing.v1 import ledger_pb2
from reprise.scheduler.v1 import prediction_pb2
from reprise.storage.v1 import model_pb2
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from cli import doctor, predict, show
from cli import push as pushing
from cli.client import CallFailed, Client

AMOUNT_MAX = Decimal(10) ** 9
INTERRUPTED_TIMEOUT_S = 10.0


async def push(
    client: Client, model: str, path: Path, *, config: Path | None, is_public: bool, is_json: bool
) -> None:
    owner, name, _ = predict.split_reference(model)
    project = pushing.read_project(path, config)
    with Progress(
        TextColumn("uploading"), BarColumn(), DownloadColumn(), console=show.err, transient=True
    ) as progress:
        bar = progress.add_task("uploading", total=None)
        sent = await pushing.upload_missing(
            client, project, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    show.err.print(f"uploaded {sent:,} bytes; {len(project.files)} files in the version")
    request = model_pb2.CreateVersionRequest(
        owner=owner,
        name=name,
        kind=project.kind,
        files=[item.entry for item in project.files],
        visibility=model_pb2.VISIBILITY_PUBLIC if is_public else model_pb2.VISIBILITY_PRIVATE,
    )
    with show.err.status("building") as status:

        def tell(step: str) -> None:
            status.update(f"building: {step.splitlines()[-1][:100]}" if step else "building")
            show.err.print(step, style="dim", markup=False, highlight=False)

        version = await pushing.create_version(client, request, tell)
    if is_json:
        show.as_json(version)
    else:
        show.out.print(f"{owner}/{name}:{version.id}", soft_wrap=True)


async def run(
    client: Client, model: str, arguments: list[str], *, folder: Path, is_json: bool
) -> None:
    properties = await predict.input_schema(client, model)
    inputs = await predict.read_inputs(client, arguments, properties)
    prediction = await predict.create(client, model, inputs)
    live = _LiveRun(is_quiet=is_json)
    try:
        prediction = await predict.follow(client, prediction, live.update)
    except asyncio.CancelledError:
        live.close()
        await _cancel_interrupted(client, prediction.id)
        raise
    finally:
        live.close()
    prediction = await predict.settled(client, prediction)
    output = json.loads(prediction.output.text or "null")
    output = await predict.save_files(client, output, folder)
    prediction.output.text = json.dumps(output)
    if is_json:
        show.as_json(prediction)
    else:
        _show_output(output, live.is_streamed)
        show.err.print(f"{show.colored_status(prediction)}  {prediction.id}")
        show.err.print(f"cost: {show.price(prediction)}", highlight=False)
    if prediction.status != prediction_pb2.PREDICTION_STATUS_SUCCEEDED:
        raise CallFailed(prediction.error or show.status_name(prediction))


async def _cancel_interrupted(client: Client, prediction_id: str) -> None:
    """Who stops waiting does not want to pay on; a second Ctrl-C ends this at once."""
    request = prediction_pb2.CancelPredictionRequest(prediction_id=prediction_id)
    show.err.print(f"canceling {prediction_id}", highlight=False)
    try:
        answer = await client.call(
            client.predictions.CancelPrediction, request, INTERRUPTED_TIMEOUT_S
        )
    except CallFailed as error:
        show.err.print(
            f"it may still run ({error}); cancel it with `reprise cancel {prediction_id}`",
            markup=False,
            highlight=False,
        )
        return
    show.err.print(f"{show.colored_status(answer.prediction)}  {prediction_id}")


class _LiveRun:
    """Shows a run as it goes: where it waits, its logs, the pieces of streamed text."""

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._status = show.err.status("starting")
        self._logs = ""
        self._logs_shown = 0
        self._items_shown = 0
        self._is_closed = False
        self.is_streamed = False
        if not is_quiet:
            self._status.start()

    def update(self, prediction: prediction_pb2.Prediction) -> None:
        if self._is_quiet:
            return
        self._status.update(show.waiting(prediction))
        self._logs = prediction.logs
        # Whole lines only: the rest of a line may still come.
        self._show_logs(until=prediction.logs.rfind("\n") + 1)
        output = json.loads(prediction.output.text or "null")
        if isinstance(output, list) and all(isinstance(item, str) for item in output):
            self._stream(output)

    def _show_logs(self, *, until: int) -> None:
        if fresh := self._logs[self._logs_shown : until]:
            self._logs_shown = until
            show.err.print(fresh.rstrip("\n"), style="dim", markup=False, highlight=False)

    def _stream(self, items: list[str]) -> None:
        if any(item.startswith(predict.FILE_PREFIX) for item in items):
            return
        fresh = items[self._items_shown :]
        if fresh:
            self._status.stop()
            self.is_streamed = True
            sys.stdout.write("".join(fresh))
            sys.stdout.flush()
        self._items_shown = len(items)

    def close(self) -> None:
        self._status.stop()
        self._show_logs(until=len(self._logs))
        if self.is_streamed and not self._is_closed:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._is_closed = True


def _show_output(output: object, is_streamed: bool) -> None:
    if is_streamed or output is None:
        return
    if isinstance(output, str):
        show.out.print(output, markup=False, highlight=False, soft_wrap=True)
    else:
        show.out.print_json(json.dumps(output))


async def list_predictions(client: Client, count: int, is_json: bool) -> None:
    request = prediction_pb2.ListPredictionsRequest(page_size=count)
    answer = await client.call(client.predictions.ListPredictions, request)
    if is_json:
        show.as_json(answer)
    else:
        show.out.print(show.predictions_table(list(answer.predictions)))


async def logs(client: Client, prediction_id: str, is_following: bool) -> None:
    request = prediction_pb2.GetPredictionRequest(prediction_id=prediction_id)
    prediction = (await client.call(client.predictions.GetPrediction, request)).prediction
    shown = 0

    def tell(changed: prediction_pb2.Prediction) -> None:
        nonlocal shown
        sys.stdout.write(changed.logs[shown:])
        sys.stdout.flush()
        shown = len(changed.logs)

    tell(prediction)
    if is_following and prediction.status not in predict.FINAL:
        await predict.follow(client, prediction, tell)


async def cancel(client: Client, prediction_id: str) -> None:
    request = prediction_pb2.CancelPredictionRequest(prediction_id=prediction_id)
    answer = await client.call(client.predictions.CancelPrediction, request)
    show.out.print(f"{show.colored_status(answer.prediction)}  {prediction_id}")


async def list_models(client: Client, is_json: bool) -> None:
    answer = await client.call(client.models.ListModels, model_pb2.ListModelsRequest())
    if is_json:
        show.as_json(answer)
        return
    table = Table("model", "kind", "latest version", "runs", box=None, header_style="bold")
    for model in answer.models:
        version = model.latest_version
        kind = model_pb2.VersionKind.Name(version.kind).removeprefix("VERSION_KIND_").lower()
        table.add_row(
            f"{model.owner}/{model.name}",
            kind if version.id else "",
            version.id[:12] or "none",
            str(model.run_count),
        )
    show.out.print(table)


async def show_credit(client: Client, is_json: bool) -> None:
    answer = await client.call(client.ledger.GetCredit, ledger_pb2.GetCreditRequest())
    _show_credit(answer.credit, is_json)


async def add_credit(client: Client, amount: str, *, account: str, is_json: bool) -> None:
    try:
        micros = Decimal(amount) * show.MICROS
    except InvalidOperation:
        raise CallFailed(f"{amount}: not an amount; write for instance 12.50") from None
    if not 0 < micros <= AMOUNT_MAX * show.MICROS or micros != int(micros):
        raise CallFailed(f"{amount}: must be above 0 with at most 6 decimals")
    request = ledger_pb2.AddCreditRequest(account_id=account, amount_micros=int(micros))
    answer = await client.call(client.ledger.AddCredit, request)
    _show_credit(answer.credit, is_json)


def _show_credit(credit: ledger_pb2.Credit, is_json: bool) -> None:
    if is_json:
        show.as_json(credit)
        return
    table = Table(box=None, show_header=False)
    table.add_row("balance", show.money(credit.balance_micros, credit.currency))
    table.add_row("held", show.money(credit.held_micros, credit.currency))
    table.add_row("available", show.money(credit.available_micros, credit.currency))
    show.out.print(table)


def examine(data: Path, is_json: bool) -> None:
    findings = list(doctor.examine(data))
    if is_json:
        show.print_json([item.to_json() for item in findings])
    else:
        for item in findings:
            show.out.print(f"{_mark(item)}  {item.name}: {item.detail}", highlight=False)
            if not item.is_ok:
                show.out.print(f"    {item.advice}", style="dim", markup=False, highlight=False)
    if any(not item.is_ok and not item.is_optional for item in findings):
        raise SystemExit(1)


def _mark(finding: doctor.Finding) -> str:
    if finding.is_ok:
        return "[green]ok[/]"
    return "[yellow]--[/]" if finding.is_optional else "[red]no[/]"
