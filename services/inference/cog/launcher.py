"""First program of every model process: sets resource limits and ties its life to the platform's
process.

Run by path with `python -I -S` and only the standard library, so that nothing has to run between
fork and exec in the platform's own process. Arguments: a JSON object {limits, stay, command}.

`stay` is for hosts without bubblewrap: this process remains as the parent, because a cog server
killed by its own death signal would leave a busy worker behind; it kills the whole process group
instead.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_parent(death_signal: int, parent_pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call above; then the signal would never come.
    if os.getppid() != parent_pid:
        os._exit(1)


def _set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        resource_id = getattr(resource, f"RLIMIT_{name.upper()}")
        _, hard = resource.getrlimit(resource_id)
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(resource_id, (bounded, bounded))


def _kill_group(_signal_number: int, _frame: object) -> None:
    os.killpg(0, signal.SIGKILL)


def _stay(command: list[str], environment: dict[str, str]) -> None:
    signal.signal(signal.SIGTERM, _kill_group)
    _die_with_parent(signal.SIGTERM, os.getppid())
    child = os.posix_spawnp(command[0], command, environment)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> None:
    order = json.loads(sys.argv[1])
    parent_pid = int(order["parent_pid"])
    if os.getppid() != parent_pid:
        os._exit(1)
    _set_limits(order["limits"])
    command = list(order["command"])
    if order["stay"]:
        _stay(command, dict(os.environ))
    _die_with_parent(signal.SIGKILL, parent_pid)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
