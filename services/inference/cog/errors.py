"""What can go wrong with a Cog project, its environment and its running server."""

from collections.abc import Sequence


class CogProjectError(ValueError):
    """The project is refused: where the mistake is, what it is, and what to do about it."""

    def __init__(self, *, where: str, problem: str, fix: str) -> None:
        super().__init__(f"{where}: {problem}. {fix}")
        self.where = where
        self.problem = problem
        self.fix = fix


class EnvironmentBuildFailed(Exception):
    """The environment could not be built; `output` holds the installer's last lines."""

    def __init__(self, reason: str, output: Sequence[str]) -> None:
        super().__init__("\n".join([reason, *output]))
        self.reason = reason
        self.output = tuple(output)


class SetupFailed(Exception):
    """The model never became ready; `logs` holds what it printed until then."""

    def __init__(self, reason: str, logs: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.logs = logs


class InputRejected(ValueError):
    """The input does not fit the model's schema; nothing was run."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class RunnerBusy(Exception):
    """Every slot is taken; the caller may try again or use another replica."""


class RunnerCrashed(Exception):
    """The model's process is gone: the runner must be stopped and replaced."""
