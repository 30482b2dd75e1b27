"""Reads cog.yaml into a CogConfig and refuses what this host cannot honour, naming the key and
the fix.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from services.inference.cog.cog_yaml import Document, load_document
from services.inference.cog.errors import CogProjectError

DEFAULT_PYTHON_VERSION = "3.11"
DEFAULT_COG_VERSION = "0.23.1"
CONCURRENCY_LIMIT = 256

_TOP_KEYS = frozenset(
    {
        "build",
        "run",
        "predict",
        "train",
        "image",
        "model",
        "environment",
        "concurrency",
        "observability",
        "weights",
    }
)
_BUILD_KEYS = frozenset(
    {
        "python_version",
        "python_requirements",
        "python_packages",
        "sdk_version",
        "system_packages",
        "run",
        "pre_install",
        "gpu",
        "cuda",
        "cudnn",
    }
)
_CONCURRENCY_KEYS = frozenset({"max", "default_target"})
_REFUSED_VARIABLES = frozenset(
    {
        "PATH",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "PYTHONUNBUFFERED",
        "LIBRARY_PATH",
        "HF_ENDPOINT",
        "HF_HUB_ENABLE_HF_TRANSFER",
        "LD_PRELOAD",
        "LD_AUDIT",
        "PORT",
    }
)
_REFUSED_PREFIXES = (
    "R8_",
    "REPLICATE_",
    "CUDA_",
    "NVIDIA_",
    "NV_",
    "PGET_",
    "KUBERNETES_",
    "COG_OBSERVABILITY_",
    "COG_TRACE_",
    "OTEL_",
)
_REFERENCE = re.compile(r"[^:\s]+\.py:[A-Za-z_][A-Za-z0-9_]*")
_PYTHON_VERSION = re.compile(r"3\.(\d{1,2})(?:\.\d{1,3})?")
_COG_VERSION = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class CogConfig:
    """One project's cog.yaml; paths are relative to the project, `warnings` are sentences for
    the author.
    """

    predict: str | None = None
    train: str | None = None
    python_version: str = DEFAULT_PYTHON_VERSION
    requirements_file: str | None = None
    python_packages: tuple[str, ...] = ()
    system_packages: tuple[str, ...] = ()
    cog_version: str = DEFAULT_COG_VERSION
    gpu: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    concurrency_max: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def python_minor(self) -> str:
        return ".".join(self.python_version.split(".")[:2])


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine offers to models; `system_packages` are those known to be installed."""

    python_versions: tuple[str, ...]
    has_gpu: bool = False
    system_packages: frozenset[str] = frozenset()


def read_config(project_dir: Path) -> CogConfig:
    """Raises CogProjectError for anything that upstream refuses, and for unknown keys, which it
    ignores.
    """
    document = load_document(project_dir / "cog.yaml")
    document.refuse_unknown_keys("", _TOP_KEYS, elsewhere={"build": _BUILD_KEYS})
    document.refuse_unknown_keys("build", _BUILD_KEYS, elsewhere={"": _TOP_KEYS})
    document.refuse_unknown_keys("concurrency", _CONCURRENCY_KEYS, elsewhere={})
    _refuse_unsupported_keys(document)
    predict = _reference(document, _predict_key(document))
    train = _reference(document, "train")
    if predict is None and train is None:
        raise document.error(
            "predict", "there is no model", 'Add `predict: "predict.py:Predictor"`.'
        )
    python_version = _python_version(document)
    return CogConfig(
        predict=predict,
        train=train,
        python_version=python_version,
        requirements_file=_requirements_file(document, project_dir),
        python_packages=document.texts("build.python_packages"),
        system_packages=document.texts("build.system_packages"),
        cog_version=_cog_version(document),
        gpu=document.flag("build.gpu"),
        environment=_environment(document),
        concurrency_max=_concurrency_max(document, python_version),
        warnings=_warnings(document),
    )


def refuse_on_host(config: CogConfig, host: Host) -> None:
    """Raises CogProjectError for what the project needs and this host does not have."""
    if config.python_minor not in {_minor(version) for version in host.python_versions}:
        found = ", ".join(sorted(set(host.python_versions))) or "none"
        raise CogProjectError(
            where=f"build.python_version: {config.python_version}",
            problem=f"no Python {config.python_minor} was found on this host (found: {found})",
            fix="Ask the operator to install it, or ask for one that is there.",
        )
    missing = [name for name in config.system_packages if name not in host.system_packages]
    if missing:
        raise CogProjectError(
            where=f"build.system_packages: {', '.join(missing)}",
            problem="not installed, and this runner does not install system packages",
            fix="Ask the operator to install it on the host, or use a Python wheel that brings it.",
        )
    if config.gpu and not host.has_gpu:
        raise CogProjectError(
            where="build.gpu: true",
            problem="this host has no NVIDIA GPU",
            fix="Remove it if the model runs on a CPU, or push to a host with a GPU.",
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _predict_key(document: Document) -> str:
    if document.has("run") and document.has("predict"):
        raise document.error(
            "run",
            "`run` and `predict` are the new and the old name of one key",
            "Keep one of them.",
        )
    return "run" if document.has("run") else "predict"


def _reference(document: Document, path: str) -> str | None:
    value = document.text(path)
    if value is None:
        return None
    if not _REFERENCE.fullmatch(value) or ".." in Path(value).parts or value.startswith("/"):
        raise document.error(
            path,
            f"{value!r} is not a reference to a class or function of the project",
            'Write it as "file.py:Name", the file relative to cog.yaml.',
        )
    return value


def _python_version(document: Document) -> str:
    value = document.text("build.python_version")
    if value is None:
        if document.has("build"):
            raise document.error(
                "build.python_version",
                "it is missing",
                f'Add `python_version: "{DEFAULT_PYTHON_VERSION}"`.',
            )
        return DEFAULT_PYTHON_VERSION
    match = _PYTHON_VERSION.fullmatch(value)
    if match is None or int(match[1]) < 10:
        raise document.error(
            "build.python_version",
            f"{value!r} is not a version from 3.10 on",
            'Write it as "3.11".',
        )
    return value


def _cog_version(document: Document) -> str:
    value = document.text("build.sdk_version")
    if value is None:
        return DEFAULT_COG_VERSION
    if not _COG_VERSION.fullmatch(value):
        raise document.error(
            "build.sdk_version",
            f"{value!r} is not a version",
            f'Write it as "{DEFAULT_COG_VERSION}".',
        )
    if tuple(int(part) for part in value.split(".")) < (0, 17, 0):
        raise document.error(
            "build.sdk_version",
            f"{value} is older than 0.17.0, which this runner needs",
            "Remove the key to get the current version.",
        )
    return value


def _requirements_file(document: Document, project_dir: Path) -> str | None:
    value = document.text("build.python_requirements")
    if value is None:
        return None
    if document.has("build.python_packages"):
        raise document.error(
            "build.python_packages", "it stands beside python_requirements", "Keep one of them."
        )
    path = (project_dir / value).resolve()
    if not path.is_relative_to(project_dir.resolve()) or not path.is_file():
        raise document.error(
            "build.python_requirements",
            f"there is no file {value!r} in the project",
            "Add it to the project.",
        )
    return value


def _environment(document: Document) -> dict[str, str]:
    variables: dict[str, str] = {}
    for index, entry in enumerate(document.texts("environment")):
        where = f"environment[{index}]"
        name, equals, value = entry.partition("=")
        if not equals or not _VARIABLE_NAME.fullmatch(name):
            raise document.error(where, f"{entry!r} is not NAME=value", "Write it as NAME=value.")
        if name in _REFUSED_VARIABLES or name.startswith(_REFUSED_PREFIXES):
            raise document.error(
                where, f"{name} belongs to the platform and cannot be set by a model", "Remove it."
            )
        if name in variables:
            raise document.error(where, f"{name} is set twice", "Keep one of them.")
        variables[name] = value
    return variables


def _concurrency_max(document: Document, python_version: str) -> int | None:
    value = document.text("concurrency.max")
    if value is None:
        return None
    if not value.isdecimal() or not 1 <= int(value) <= CONCURRENCY_LIMIT:
        raise document.error(
            "concurrency.max",
            f"{value!r} is not a whole number from 1 to {CONCURRENCY_LIMIT}",
            "Write the number of predictions that may run at once.",
        )
    if int(value) > 1 and _minor(python_version) == "3.10":
        raise document.error(
            "concurrency.max",
            f"{value} needs Python 3.11 or later, and build.python_version is {python_version}",
            'Set `python_version: "3.11"`.',
        )
    return int(value)


def _refuse_unsupported_keys(document: Document) -> None:
    for key in ("build.run", "build.pre_install"):
        for index, command in enumerate(document.items(key)):
            text = command if isinstance(command, str) else str(command.get("command", command))
            raise document.error(
                f"{key}[{index}]",
                f'"{text}" would run on the host, and build commands are off',
                "Bring what it installs as a Python package, or do it in setup().",
            )
    if document.has("weights"):
        raise document.error(
            "weights",
            "this runner mounts no managed weights",
            "Ship the files in the project instead.",
        )
    if document.has("observability.config"):
        raise document.error(
            "observability.config", "this runner loads no telemetry file", "Remove the key."
        )


def _warnings(document: Document) -> tuple[str, ...]:
    ignored = ["build.cuda", "build.cudnn", "image", "model", "observability.traces"]
    return tuple(
        f"{key} is ignored: there is no container image here"
        for key in ignored
        if document.has(key)
    )
