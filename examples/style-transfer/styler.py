"""Paints a picture of any size, tile by tile, as if the network had seen it whole.

The network normalises each feature map by its mean and variance over the picture. A tile has other
means than the picture, so tiles painted alone differ in tone and their borders show. Here the
statistics are taken once, from the whole picture made small, and every tile is painted with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

STYLE_COUNT = 26
TILE = 256
# No output pixel depends on inputs this far away, so with this margin neighbouring tiles
# agree exactly where they meet. A multiple of 4, because the network halves its input twice.
MARGIN = 64
_STRIDE = 4
_THUMBNAIL_SIDE = 512


@dataclass(frozen=True, slots=True)
class Span:
    """One tile along one axis: what is painted, and the wider stretch the network is shown."""

    start: int
    end: int
    seen_start: int
    seen_end: int

    @property
    def kept(self) -> slice:
        return slice(self.start - self.seen_start, self.end - self.seen_start)


class Styler:
    def __init__(self, weights: Path) -> None:
        network = onnx.load(weights)
        statistics = [node for node in network.graph.node if node.op_type == "ReduceMean"]
        self._statistic_names = [node.output[0] for node in statistics]
        self._measure = _session(_with_statistics_as_outputs(network, self._statistic_names))
        self._paint = _session(_with_statistics_as_inputs(network, self._statistic_names))

    def tiles(self, picture: Image.Image) -> list[tuple[Span, Span]]:
        """The tiles in reading order: (vertical, horizontal)."""
        return [(row, column) for row in spans(picture.height) for column in spans(picture.width)]

    def paint(
        self, picture: Image.Image, *, style: int, tiles: Iterator[tuple[Span, Span]]
    ) -> Image.Image:
        """Consumes `tiles` as it paints, so that a progress bar can be wrapped around them."""
        style_weights = np.zeros(STYLE_COUNT, np.float32)
        style_weights[style] = 1
        inputs = {"style_weights": style_weights}
        inputs |= self._statistics(picture, style_weights)
        pixels = _to_pixels(picture)
        painted = np.empty((picture.height, picture.width, 3), np.uint8)
        for row, column in tiles:
            tile = pixels[:, :, row.seen_start : row.seen_end, column.seen_start : column.seen_end]
            (result,) = self._paint.run(["stylized"], inputs | {"image": tile})
            kept = result[0, :, row.kept, column.kept].transpose(1, 2, 0)
            painted[row.start : row.end, column.start : column.end] = np.rint(kept * 255)
        return Image.fromarray(painted)

    def _statistics(self, picture: Image.Image, style_weights: np.ndarray) -> dict[str, np.ndarray]:
        thumbnail = picture.copy()
        thumbnail.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        inputs = {"image": _to_pixels(thumbnail), "style_weights": style_weights}
        values = self._measure.run(self._statistic_names, inputs)
        return dict(zip(self._statistic_names, values, strict=True))


def spans(length: int) -> Iterator[Span]:
    padded = length + -length % _STRIDE
    for start in range(0, length, TILE):
        end = min(start + TILE, length)
        yield Span(start, end, max(0, start - MARGIN), min(start + TILE + MARGIN, padded))


def _to_pixels(picture: Image.Image) -> np.ndarray:
    """[1, 3, height, width] from 0 to 1, mirrored at the far edges up to a multiple of 4."""
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255
    extra = [(0, -side % _STRIDE) for side in pixels.shape[2:]]
    return np.pad(pixels, [(0, 0), (0, 0), *extra], mode="reflect")


def _with_statistics_as_outputs(network: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    measuring = onnx.ModelProto()
    measuring.CopyFrom(network)
    del measuring.graph.output[:]
    measuring.graph.output.extend(_value_info(name) for name in names)
    return measuring


def _with_statistics_as_inputs(network: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    painting = onnx.ModelProto()
    painting.CopyFrom(network)
    rest = [node for node in painting.graph.node if node.op_type != "ReduceMean"]
    del painting.graph.node[:]
    painting.graph.node.extend(rest)
    painting.graph.input.extend(_value_info(name) for name in names)
    return painting


def _value_info(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, None, 1, 1])


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
