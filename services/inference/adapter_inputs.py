"""Typed inputs to tensors: images, text, numbers and plain arrays."""

import io
import math
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from inference_core import TensorSpec
from inference_core.signature import Array
from services.chassis.errors import InvalidInput
from services.inference.adapter_config import Section, json_type

_IMAGE_BYTES_MAX = 32 << 20
_IMAGE_PIXELS_MAX = 50_000_000
_ELEMENTS_MAX = 4_000_000
_MODES = {"RGB": "RGB", "BGR": "RGB", "GRAY": "L"}
# Decoders of formats that people send; the rest of Pillow's stays out of reach of strangers' bytes.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class InputField(Protocol):
    """One property of a version's input."""

    @property
    def tensor(self) -> str | None:
        """The tensor that it fills; None for a parameter of an output."""
        ...

    def schema(self) -> dict[str, Any]: ...

    def convert(self, name: str, value: object) -> Array | int | float:
        """Raises InvalidInput, naming the field."""
        ...


@dataclass(frozen=True, slots=True)
class ImageInput:
    """Bytes of a picture, resized and normalised: (pixel - mean) / std, in units of 0..255."""

    tensor: str
    dtype: np.dtype[Any]
    layout: str
    size: tuple[int, int]
    color: str
    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: str

    @classmethod
    def read(cls, section: Section, spec: TensorSpec) -> "ImageInput":
        layout = section.choice("layout", ("NCHW", "NHWC"), "NCHW")
        color = section.choice("color", tuple(_MODES), "RGB")
        channels = 1 if color == "GRAY" else 3
        is_float = spec.dtype.is_float
        field = cls(
            tensor=spec.name,
            dtype=spec.dtype.numpy,
            layout=layout,
            size=_image_size(section, spec, layout),
            color=color,
            resize=section.choice("resize", ("crop", "stretch", "fit"), "crop"),
            mean=section.numbers("mean", channels, 0.0),
            std=section.numbers("std", channels, 255.0 if is_float else 1.0),
            description=section.text("description", "An image"),
        )
        field.check(section, spec, channels)
        return field

    def check(self, section: Section, spec: TensorSpec, channels: int) -> None:
        if any(value <= 0 for value in self.std):
            raise section.fail("std", "must be above 0")
        if any(value < 1 for value in self.std) or any(0 < value < 1 for value in self.mean):
            raise section.fail("mean", "and std count in pixel values 0..255: multiply by 255")
        if not spec.dtype.is_float and (set(self.mean) != {0.0} or set(self.std) != {1.0}):
            raise section.fail(
                "mean", f"and std need a float tensor; '{spec.name}' is {spec.dtype}"
            )
        height, width = self.size
        planes = (channels, height, width) if self.layout == "NCHW" else (height, width, channels)
        if not spec.fits((1, *planes)):
            raise section.fail(
                "tensor", f"'{spec.name}' is {spec.describe()}, the image gives {[1, *planes]}"
            )

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "uri", "description": self.description}

    def convert(self, name: str, value: object) -> Array:
        if not isinstance(value, bytes):
            raise InvalidInput(f"input '{name}' must be an image file")
        image = _resized(_decode(name, value, _MODES[self.color]), self.size, self.resize)
        pixels = np.asarray(image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        if self.dtype.kind == "f":
            pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels[None], dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class TensorInput:
    """A nested JSON array of the tensor's own shape."""

    spec: TensorSpec
    description: str

    @property
    def tensor(self) -> str:
        return self.spec.name

    @classmethod
    def read(cls, section: Section, spec: TensorSpec) -> "TensorInput":
        return cls(spec, section.text("description", spec.describe()))

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": json_type(self.spec)}
        for dim in reversed(self.spec.shape):
            schema = {"type": "array", "items": schema}
            if isinstance(dim, int):
                schema |= {"minItems": dim, "maxItems": dim}
        return schema | {"description": self.description}

    def convert(self, name: str, value: object) -> Array:
        shape = _nested_shape(name, value)
        if math.prod(shape) > _ELEMENTS_MAX:
            raise InvalidInput(f"input '{name}' has more than {_ELEMENTS_MAX} elements")
        if not self.spec.fits(shape):
            raise InvalidInput(
                f"input '{name}' must have shape {self.spec.describe()}, got {list(shape)}"
            )
        try:
            raw = np.array(value)
        except ValueError as error:
            raise InvalidInput(f"input '{name}' must be a regular array without holes") from error
        return _cast(name, raw, self.spec)


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text as the numbers of its UTF-8 bytes, padded to a fixed length."""

    spec: TensorSpec
    length: int
    pad: int
    description: str

    @property
    def tensor(self) -> str:
        return self.spec.name

    @classmethod
    def read(cls, section: Section, spec: TensorSpec) -> "TextInput":
        section.choice("encoding", ("bytes",), "bytes")
        length = section.integer("length")
        if not 1 <= length <= _ELEMENTS_MAX or not spec.fits((1, length)) or spec.dtype.is_float:
            raise section.fail(
                "length", f"{length} does not fit: '{spec.name}' is {spec.describe()}"
            )
        pad = section.integer("pad", 0)
        if not 0 <= pad <= 255:
            raise section.fail("pad", "must be a byte, 0 to 255")
        return cls(spec, length, pad, section.text("description", "A text"))

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.length, "description": self.description}

    def convert(self, name: str, value: object) -> Array:
        if not isinstance(value, str):
            raise InvalidInput(f"input '{name}' must be a text")
        codes = value.encode("utf-8", errors="replace")
        if len(codes) > self.length:
            raise InvalidInput(
                f"input '{name}' has {len(codes)} bytes, the model takes {self.length}"
            )
        row = np.full((1, self.length), self.pad, self.spec.dtype.numpy)
        row[0, : len(codes)] = np.frombuffer(codes, np.uint8)
        return row


@dataclass(frozen=True, slots=True)
class NumberInput:
    """A number: a tensor of one element, or a parameter of an output."""

    spec: TensorSpec | None
    is_integer: bool
    default: float | None
    minimum: float | None
    maximum: float | None
    description: str

    @property
    def tensor(self) -> str | None:
        return self.spec.name if self.spec else None

    @classmethod
    def read(cls, section: Section, spec: TensorSpec | None, *, is_integer: bool) -> "NumberInput":
        if spec and any(isinstance(dim, int) and dim != 1 for dim in spec.shape):
            raise section.fail("tensor", f"'{spec.name}' is {spec.describe()}: not one number")
        field = cls(
            spec=spec,
            is_integer=is_integer,
            default=section.number("default"),
            minimum=section.number("minimum"),
            maximum=section.number("maximum"),
            description=section.text("description", "A number"),
        )
        if field.default is not None:
            field.convert(f"{section.path}.default", field.default)
        return field

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "integer" if self.is_integer else "number"}
        for key in ("default", "minimum", "maximum"):
            if (value := getattr(self, key)) is not None:
                schema[key] = value
        return schema | {"description": self.description}

    def convert(self, name: str, value: object) -> Array | int | float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise InvalidInput(f"input '{name}' must be a number")
        if self.is_integer and not float(value).is_integer():
            raise InvalidInput(f"input '{name}' must be a whole number")
        if self.minimum is not None and value < self.minimum:
            raise InvalidInput(f"input '{name}' must be at least {self.minimum:g}")
        if self.maximum is not None and value > self.maximum:
            raise InvalidInput(f"input '{name}' must be at most {self.maximum:g}")
        if self.spec is None:
            return int(value) if self.is_integer else value
        return _cast(name, np.array(value), self.spec).reshape((1,) * len(self.spec.shape))


def _image_size(section: Section, spec: TensorSpec, layout: str) -> tuple[int, int]:
    if section.has("size"):
        height, width = section.numbers("size", 2, 0)
    else:
        axes = (2, 3) if layout == "NCHW" else (1, 2)
        dims = [spec.shape[axis] for axis in axes] if len(spec.shape) == 4 else [None, None]
        if not all(isinstance(dim, int) for dim in dims):
            raise section.fail("size", f"is missing: '{spec.name}' is {spec.describe()}")
        height, width = (float(str(dim)) for dim in dims)
    if not (1 <= height <= 4096 and 1 <= width <= 4096) or height % 1 or width % 1:
        raise section.fail("size", "must be [height, width], 1 to 4096 each")
    return int(height), int(width)


def _decode(name: str, content: bytes, mode: str) -> Image.Image:
    if len(content) > _IMAGE_BYTES_MAX:
        raise InvalidInput(f"input '{name}' has more than {_IMAGE_BYTES_MAX} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        # The header alone was read so far: a bomb is refused before it is unpacked.
        if image.width * image.height > _IMAGE_PIXELS_MAX:
            raise InvalidInput(
                f"input '{name}' has {image.width} x {image.height} pixels, "
                f"at most {_IMAGE_PIXELS_MAX} are allowed"
            )
        return ImageOps.exif_transpose(image).convert(mode)
    except Image.DecompressionBombError as error:
        raise InvalidInput(f"input '{name}' has more than {_IMAGE_PIXELS_MAX} pixels") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InvalidInput(
            f"input '{name}' is not a readable image: send {', '.join(_FORMATS)}"
        ) from error


def _resized(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    box = (size[1], size[0])
    if how == "stretch":
        return image.resize(box, Image.Resampling.BILINEAR)
    if how == "fit":
        return ImageOps.pad(image, box, Image.Resampling.BILINEAR)
    return ImageOps.fit(image, box, Image.Resampling.BILINEAR)


def _nested_shape(name: str, value: object) -> tuple[int, ...]:
    """The shape along the first elements; numpy finds out whether the rest is as regular."""
    shape: list[int] = []
    while isinstance(value, list):
        if len(shape) == 32:
            raise InvalidInput(f"input '{name}' is nested too deeply")
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _cast(name: str, raw: Array, spec: TensorSpec) -> Array:
    wanted = "b" if spec.dtype.value == "bool" else "if" if spec.dtype.is_float else "i"
    # An empty list has no kind of its own.
    if raw.dtype.kind not in wanted and raw.size and not _holds_whole_numbers(raw, wanted):
        raise InvalidInput(f"input '{name}' must hold values of type {spec.dtype}")
    array = raw.astype(spec.dtype.numpy)
    if raw.size and wanted == "i" and not np.array_equal(array, raw):
        raise InvalidInput(f"input '{name}' has values out of range for {spec.dtype}")
    return array


def _holds_whole_numbers(raw: Array, wanted: str) -> bool:
    return wanted == "i" and raw.dtype.kind == "f" and bool(np.all(np.mod(raw, 1) == 0))


def _finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)
