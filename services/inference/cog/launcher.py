"""First program of every model process: sets resource limits and ties its life to the platform's
process.

Run by path with `python -I -S` and only the standard library, so that nothing has to run between
fork and exec in the platform's own process. Arguments: a JSON object {limits, stay, command}.

`stay` is for hosts without bubblewrap: this process remains as the parent, because a cog server
killed by its own death signal would leave a busy worker behind; it kills every descendant instead.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Of 1000; inherited by all that the model starts.
_OOM_SCORE = 800


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def die_with_parent(death_signal: int, parent_pid: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, death_signal)
    # The parent may have died before the call above; then the signal would never come.
    if os.getppid() != parent_pid:
        os._exit(1)


def _set_limits(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        resource_id = getattr(resource, f"RLIMIT_{name.upper()}")
        _, hard = resource.getrlimit(resource_id)
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(resource_id, (bounded, bounded))


def _be_first_out_of_memory() -> None:
    # A model that takes all the memory must be what the kernel ends, not a service of the mesh.
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(_OOM_SCORE))
    except OSError:
        # A wish, not a condition: some containers hold /proc read-only.
        pass


def _kill_tree(_signal_number: int = 0, _frame: object = None) -> None:
    """Ends when there is no descendant left: orphans come back here, because this process is
    their reaper.
    """
    own = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    while True:
        with open(own) as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            os._exit(128 + signal.SIGKILL)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def _stay(command: list[str], parent_pid: int) -> None:
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _kill_tree)
    die_with_parent(signal.SIGTERM, parent_pid)
    child = os.posix_spawnp(command[0], command, dict(os.environ))
    while os.waitpid(-1, 0)[0] != child:
        pass
    # The server is gone; what the model started goes with it.
    _kill_tree()


def main() -> None:
    order = json.loads(sys.argv[1])
    parent_pid = int(order["parent_pid"])
    if os.getppid() != parent_pid:
        os._exit(1)
    _set_limits(order["limits"])
    _be_first_out_of_memory()
    command = list(order["command"])
    if order["stay"]:
        _stay(command, parent_pid)
    die_with_parent(signal.SIGKILL, parent_pid)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
