"""Tensors to typed outputs: labels, images, numbers and plain arrays."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from inference_core import TensorSpec
from inference_core.signature import Array
from services.chassis.errors import InvalidInput
from services.inference.adapter_config import Section, describe_keys, json_type
from services.inference.prediction_files import FileContent

_LABELS_MAX = 200_000
_ELEMENTS_MAX = 4_000_000
_PIXELS_MAX = 50_000_000
_CHANNELS = {"RGB": 3, "BGR": 3, "GRAY": 1}


class OutputField(Protocol):
    """One value of a version's output."""

    @property
    def tensor(self) -> str: ...

    @property
    def parameters(self) -> frozenset[str]:
        """Names of inputs that may be declared `for` this output."""
        ...

    def schema(self) -> dict[str, Any]: ...

    def convert(self, name: str, value: Array, parameters: Mapping[str, int | float]) -> Any:
        """JSON or a FileContent. Raises InvalidInput for a tensor of another kind than declared."""
        ...


@dataclass(frozen=True, slots=True)
class LabelsOutput:
    """The best classes with their scores, best first."""

    tensor: str
    labels: tuple[str, ...]
    activation: str
    top_k: int
    description: str
    parameters: frozenset[str] = frozenset({"top_k"})

    @classmethod
    def read(cls, section: Section, spec: TensorSpec, files: Mapping[str, bytes]) -> "LabelsOutput":
        labels = _read_labels(section, files)
        last = spec.shape[-1] if spec.shape else None
        if isinstance(last, int) and last != len(labels):
            raise section.fail(
                "labels", f"holds {len(labels)} names, tensor '{spec.name}' has {last} classes"
            )
        top_k = section.integer("top_k", min(5, len(labels)))
        if not 1 <= top_k <= len(labels):
            raise section.fail("top_k", f"must lie between 1 and {len(labels)}")
        return cls(
            tensor=spec.name,
            labels=labels,
            activation=section.choice("activation", ("none", "softmax", "sigmoid"), "none"),
            top_k=top_k,
            description=section.text("description", "Labels with scores, best first"),
        )

    def schema(self) -> dict[str, Any]:
        return {
            "type": "array",
            "description": self.description,
            "items": {
                "type": "object",
                "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
                "required": ["label", "score"],
            },
        }

    def convert(
        self, name: str, value: Array, parameters: Mapping[str, int | float]
    ) -> list[dict[str, str | float]]:
        if value.size != len(self.labels):
            raise InvalidInput(
                f"output '{name}' has {value.size} scores for {len(self.labels)} labels"
            )
        scores = _activate(value.reshape(-1).astype(np.float64), self.activation)
        count = min(int(parameters.get("top_k", self.top_k)), len(self.labels))
        best = np.argsort(-scores, kind="stable")[:count]
        return [{"label": self.labels[i], "score": round(float(scores[i]), 6)} for i in best]


@dataclass(frozen=True, slots=True)
class ImageOutput:
    """A picture as a file: pixel = value * std + mean, in units of 0..255."""

    tensor: str
    layout: str
    color: str
    file_format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str
    parameters: frozenset[str] = frozenset()

    @classmethod
    def read(cls, section: Section, spec: TensorSpec) -> "ImageOutput":
        if len(spec.shape) not in (3, 4):
            raise section.fail("tensor", f"'{spec.name}' is {spec.describe()}: not an image")
        color = section.choice("color", tuple(_CHANNELS), "RGB")
        channels = _CHANNELS[color]
        return cls(
            tensor=spec.name,
            layout=section.choice("layout", ("NCHW", "NHWC"), "NCHW"),
            color=color,
            file_format=section.choice("format", ("png", "jpeg", "webp"), "png"),
            mean=section.numbers("mean", channels, 0.0),
            std=section.numbers("std", channels, 255.0 if spec.dtype.is_float else 1.0),
            description=section.text("description", "An image"),
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "uri", "description": self.description}

    def convert(
        self, name: str, value: Array, parameters: Mapping[str, int | float]
    ) -> FileContent:
        pixels = value[0] if value.ndim == 4 and value.shape[0] == 1 else value
        if self.layout == "NCHW" and pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.ndim != 3 or pixels.shape[2] != _CHANNELS[self.color] or pixels.size == 0:
            raise InvalidInput(f"output '{name}' is not an image: shape {list(value.shape)}")
        if pixels.shape[0] * pixels.shape[1] > _PIXELS_MAX:
            raise InvalidInput(f"output '{name}' has more than {_PIXELS_MAX} pixels")
        scaled = np.nan_to_num(
            pixels * np.array(self.std, np.float32) + np.array(self.mean, np.float32)
        )
        whole = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        if self.color == "BGR":
            whole = whole[:, :, ::-1]
        image = Image.fromarray(whole[:, :, 0] if self.color == "GRAY" else whole.copy())
        encoded = io.BytesIO()
        image.save(encoded, self.file_format)
        return FileContent(encoded.getvalue(), f"image/{self.file_format}")


@dataclass(frozen=True, slots=True)
class TensorOutput:
    """The tensor as a nested JSON array."""

    spec: TensorSpec
    description: str
    parameters: frozenset[str] = frozenset()

    @property
    def tensor(self) -> str:
        return self.spec.name

    @classmethod
    def read(cls, section: Section, spec: TensorSpec) -> "TensorOutput":
        return cls(spec, section.text("description", spec.describe()))

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": json_type(self.spec)}
        if self.spec.dtype.is_float:
            schema["nullable"] = True  # JSON knows no NaN
        for _ in self.spec.shape:
            schema = {"type": "array", "items": schema}
        return schema | {"description": self.description}

    def convert(self, name: str, value: Array, parameters: Mapping[str, int | float]) -> Any:
        if value.size > _ELEMENTS_MAX:
            raise InvalidInput(
                f"output '{name}' has {value.size} elements, at most {_ELEMENTS_MAX} fit into JSON"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            boxed = value.astype(object)
            boxed[~np.isfinite(value)] = None
            return boxed.tolist()
        return value.tolist()


@dataclass(frozen=True, slots=True)
class NumberOutput:
    """A tensor of one element."""

    spec: TensorSpec
    description: str
    parameters: frozenset[str] = frozenset()

    @property
    def tensor(self) -> str:
        return self.spec.name

    @classmethod
    def read(cls, section: Section, spec: TensorSpec) -> "NumberOutput":
        return cls(spec, section.text("description", "A number"))

    def schema(self) -> dict[str, Any]:
        return {"type": json_type(self.spec), "description": self.description}

    def convert(self, name: str, value: Array, parameters: Mapping[str, int | float]) -> Any:
        if value.size != 1:
            raise InvalidInput(f"output '{name}' is not one number: shape {list(value.shape)}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InvalidInput(f"output '{name}' is not a finite number")
        return value.reshape(()).item()


def _read_labels(section: Section, files: Mapping[str, bytes]) -> tuple[str, ...]:
    name = section.text("labels")
    if name not in files:
        raise section.fail("labels", f"names '{name}', which is not among {describe_keys(files)}")
    try:
        text = files[name].decode("utf-8")
        labels = json.loads(text) if name.endswith(".json") else text.splitlines()
    except ValueError as error:
        raise section.fail("labels", f"names '{name}', which is not valid UTF-8 or JSON") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise section.fail("labels", f"names '{name}', which must hold a list of texts")
    if not 1 <= len(labels) <= _LABELS_MAX:
        raise section.fail("labels", f"names '{name}', which must hold 1 to {_LABELS_MAX} labels")
    return tuple(labels)


def _activate(scores: Array, activation: str) -> Array:
    if activation == "softmax":
        powers = np.exp(scores - scores.max())
        return np.asarray(powers / powers.sum())
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(scores, -700, 700))))
    return scores
