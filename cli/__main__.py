"""The commands of `reprise`."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.data_dir import DataDir, RunState, default_path

app = typer.Typer(
    help="A self-hosted Replicate: push a model, call it with one line, know what each run costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DOWN_TIMEOUT_S = 30.0
POLL_S = 0.05
DETACHED_START_TIMEOUT_S = 90.0

DataOption = Annotated[
    Path, typer.Option("--data", help="The mesh's data folder.", default_factory=default_path)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]


@app.command()
def up(
    data: DataOption,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65533, help="HTTP; gRPC and tensors use the next two; 0: free."),
    ] = 8080,
    is_json: JsonOption = False,
    is_detached: Annotated[
        bool,
        typer.Option("--detach", help="Return once it is ready; it goes on in the background."),
    ] = False,
    is_tls: Annotated[
        bool, typer.Option("--tls", help="Serve TLS with a local authority (DATA/tls/ca.pem).")
    ] = False,
) -> None:
    """Start the whole mesh: NATS and the five services."""
    from cli.mesh import choose_address
    from cli.supervisor import Supervisor

    data_dir = DataDir(data)
    data_dir.make()
    lock = data_dir.lock()
    if lock is None:
        _say_already_running(data_dir, is_json)
        return
    if is_detached:
        lock.close()
        _start_detached(data_dir, is_json)
        return
    supervisor = Supervisor(
        data_dir,
        choose_address(host, port),
        is_tls,
        on_ready=lambda state: _say_ready(state, is_json),
        on_restart=lambda restart: None if is_json else typer.echo(restart.describe(), err=True),
    )
    asyncio.run(supervisor.run())


def _say_ready(state: RunState, is_json: bool) -> None:
    if is_json:
        sys.stdout.write(state.to_json() + "\n")
        sys.stdout.flush()
        return
    lines = [
        f"Reprise is up: {state.url}/#token={state.token}",
        f"  HTTP    {state.url}",
        f"  gRPC    {state.grpc}",
        f"  tensors {state.oip}",
        f"  token   {state.token}",
        f"  data    {state.data}",
    ]
    if state.url.startswith("https:"):
        lines.append(f"  trust   SSL_CERT_FILE={state.data}/tls/ca.pem")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _say_already_running(data_dir: DataDir, is_json: bool) -> None:
    state = data_dir.read_state()
    if state is None:
        typer.echo(f"another `reprise up` is starting on {data_dir.path}", err=True)
        return
    pid = state.pids["supervisor"]
    typer.echo(f"Reprise runs on {data_dir.path} already (supervisor {pid})", err=True)
    _say_ready(state, is_json)


def _start_detached(data_dir: DataDir, is_json: bool) -> None:
    command = [sys.executable, "-m", "cli", *(item for item in sys.argv[1:] if item != "--detach")]
    log_path = data_dir.path / "logs" / "supervisor.log"
    with log_path.open("ab") as log_file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # Its ready line holds the token, which belongs in no log.
            stdout=subprocess.DEVNULL,
            stderr=log_file,
            start_new_session=True,
        )
    deadline = time.monotonic() + DETACHED_START_TIMEOUT_S
    while time.monotonic() < deadline:
        state = data_dir.read_state()
        if state is not None and state.pids["supervisor"] == child.pid:
            _say_ready(state, is_json)
            return
        if child.poll() is not None:
            raise SystemExit(f"the mesh did not start; see {log_path}:\n{_last_lines(log_path)}")
        time.sleep(POLL_S)
    raise SystemExit(f"the mesh was not ready in time; see {data_dir.path / 'logs'}")


def _last_lines(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-20:])


@app.command()
def down(data: DataOption) -> None:
    """Stop the mesh that runs on a data folder."""
    data_dir = DataDir(data)
    pid = data_dir.supervisor_pid()
    if pid is None:
        typer.echo(f"nothing runs on {data_dir.path}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while data_dir.is_running():
        if time.monotonic() > deadline:
            raise SystemExit(f"still running after {DOWN_TIMEOUT_S:.0f} s; see {data}/logs")
        time.sleep(POLL_S)
    typer.echo(f"stopped the mesh on {data_dir.path}")


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="owner/name")],
    path: Annotated[Path, typer.Argument(help="Folder with a cog.yaml, or an .onnx file.")],
    data: DataOption,
    config: Annotated[
        Path | None,
        typer.Option(help="reprise.yaml of an .onnx file: its typed inputs and outputs."),
    ] = None,
    is_public: Annotated[bool, typer.Option("--public", help="Every account may run it.")] = False,
    is_json: JsonOption = False,
) -> None:
    """Upload a model and make a version of it."""
    from cli import commands

    _run(
        data,
        lambda client: commands.push(
            client, model, path, config=config, is_public=is_public, is_json=is_json
        ),
    )


@app.command()
def run(
    model: Annotated[str, typer.Argument(help="owner/name or owner/name:version")],
    data: DataOption,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="name=value, or name=@file.png for a file.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for output files.")] = Path(),
    is_json: JsonOption = False,
) -> None:
    """Run a model; text is shown as it comes, files are saved; Ctrl-C cancels it."""
    from cli import commands

    _run(
        data,
        lambda client: commands.run(client, model, inputs or [], folder=output, is_json=is_json),
    )


@app.command()
def predictions(
    data: DataOption,
    count: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    is_json: JsonOption = False,
) -> None:
    """List recent predictions with status and price."""
    from cli import commands

    _run(data, lambda client: commands.list_predictions(client, count, is_json))


@app.command()
def logs(
    prediction_id: Annotated[str, typer.Argument(help="The prediction's id.")],
    data: DataOption,
    is_following: Annotated[
        bool, typer.Option("-f", "--follow", help="Until it has ended.")
    ] = False,
) -> None:
    """Show a prediction's logs."""
    from cli import commands

    _run(data, lambda client: commands.logs(client, prediction_id, is_following))


@app.command()
def cancel(
    prediction_id: Annotated[str, typer.Argument(help="The prediction's id.")], data: DataOption
) -> None:
    """Cancel a prediction, waiting or running."""
    from cli import commands

    _run(data, lambda client: commands.cancel(client, prediction_id))


@app.command()
def models(data: DataOption, is_json: JsonOption = False) -> None:
    """List models with their latest versions."""
    from cli import commands

    _run(data, lambda client: commands.list_models(client, is_json))


credit_app = typer.Typer(help="Prepaid credit.", no_args_is_help=True)
app.add_typer(credit_app, name="credit")


@credit_app.command("show")
def credit_show(data: DataOption, is_json: JsonOption = False) -> None:
    """Show balance, holds and what is available."""
    from cli import commands

    _run(data, lambda client: commands.show_credit(client, is_json))


@credit_app.command("add")
def credit_add(
    amount: Annotated[str, typer.Argument(help="In currency units, for instance 12.50.")],
    data: DataOption,
    account: Annotated[str, typer.Option(help="Whose; empty: one's own.")] = "",
    is_json: JsonOption = False,
) -> None:
    """Add credit to an account (operators only)."""
    from cli import commands

    _run(data, lambda client: commands.add_credit(client, amount, account=account, is_json=is_json))


@app.command()
def doctor(data: DataOption, is_json: JsonOption = False) -> None:
    """Check this machine and say what to do."""
    from cli import commands

    commands.examine(data, is_json)


def _run(data: Path, command: Callable[[Any], Awaitable[None]]) -> None:
    from cli.client import CallFailed, Endpoint, connect

    async def execute() -> None:
        async with connect(Endpoint.find(data)) as client:
            await command(client)

    try:
        asyncio.run(execute())
    except CallFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def main() -> None:
    """Entry point of the `reprise` program."""
    app()


if __name__ == "__main__":
    main()
