"""The llama architecture in numpy: one forward pass with a key-value cache."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from gguf_reader import GgufFile

# A long prompt goes through in pieces: bounded memory, and a cancellation can land between them.
_PREFILL_CHUNK = 256


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's weights; matrices that read the same vector are stacked into one product."""

    qkv: np.ndarray
    attention_out: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray


@dataclass(slots=True)
class Cache:
    """Keys and values of the positions seen so far: [layer, head, position, dimension]."""

    keys: np.ndarray
    values: np.ndarray
    length: int = 0


class Llama:
    def __init__(self, gguf: GgufFile) -> None:
        self._read_shape(gguf)
        with ThreadPoolExecutor() as pool:
            embedding = pool.submit(gguf.tensor, "token_embd.weight")
            self._layers = list(pool.map(lambda i: _read_layer(gguf, i), range(self._layer_count)))
            self._embedding = embedding.result()
        self._output_norm = gguf.tensor("output_norm.weight")
        angles = self._frequencies[None, :] * np.arange(self.context_length)[:, None]
        self._rotations = np.exp(1j * angles).astype(np.complex64)

    def _read_shape(self, gguf: GgufFile) -> None:
        def field(name: str) -> int:
            return gguf.metadata[f"llama.{name}"]

        self.context_length = field("context_length")
        self._layer_count = field("block_count")
        self._heads = field("attention.head_count")
        self._kv_heads = field("attention.head_count_kv")
        self._head_width = field("embedding_length") // self._heads
        self._epsilon = gguf.metadata["llama.attention.layer_norm_rms_epsilon"]
        exponents = np.arange(0, self._head_width, 2) / self._head_width
        self._frequencies = gguf.metadata["llama.rope.freq_base"] ** -exponents

    def new_cache(self, capacity: int) -> Cache:
        shape = (self._layer_count, self._kv_heads, capacity, self._head_width)
        return Cache(np.empty(shape, np.float32), np.empty(shape, np.float32))

    def logits(self, tokens: list[int], cache: Cache) -> np.ndarray:
        """Appends the tokens to the cache and scores what follows the last of them."""
        x = np.zeros((1, 0))
        with np.errstate(over="ignore"):  # silu's exp overflows to inf, which is the right limit
            for start in range(0, len(tokens), _PREFILL_CHUNK):
                x = self._embedding[tokens[start : start + _PREFILL_CHUNK]]
                for index, layer in enumerate(self._layers):
                    x = x + self._attention(x, layer=layer, index=index, cache=cache)
                    x = x + _feed_forward(_normalised(x, self._epsilon), layer)
                cache.length += len(x)
        return self._embedding @ (_normalised(x[-1], self._epsilon) * self._output_norm)

    def _attention(self, x: np.ndarray, *, layer: _Layer, index: int, cache: Cache) -> np.ndarray:
        count, start, end = len(x), cache.length, cache.length + len(x)
        qkv = _normalised(x, self._epsilon) @ layer.qkv.T
        qkv = qkv.reshape(count, self._heads + 2 * self._kv_heads, self._head_width)
        queries, keys, values = np.split(qkv, [self._heads, self._heads + self._kv_heads], axis=1)
        cache.keys[index, :, start:end] = self._rotated(keys, start).swapaxes(0, 1)
        cache.values[index, :, start:end] = values.swapaxes(0, 1)

        # Query heads share key heads in groups: [key head, group x token, dimension].
        group = self._heads // self._kv_heads
        queries = self._rotated(queries, start).swapaxes(0, 1)
        queries = queries.reshape(self._kv_heads, group * count, self._head_width)
        scores = queries @ cache.keys[index, :, :end].swapaxes(1, 2)
        scores *= self._head_width**-0.5
        if count > 1:
            future = np.triu(np.full((count, end), -np.inf, np.float32), start + 1)
            scores.reshape(self._kv_heads, group, count, end)[:] += future
        mixed = softmax(scores) @ cache.values[index, :, :end]
        heads = mixed.reshape(self._heads, count, self._head_width).swapaxes(0, 1)
        return heads.reshape(count, -1) @ layer.attention_out.T

    def _rotated(self, heads: np.ndarray, start: int) -> np.ndarray:
        """Rotary position: each neighbouring pair of dimensions is a complex number, turned."""
        pairs = np.ascontiguousarray(heads).view(np.complex64)
        return (pairs * self._rotations[start : start + len(heads), None]).view(np.float32)


def _read_layer(gguf: GgufFile, index: int) -> _Layer:
    def weight(name: str) -> np.ndarray:
        return gguf.tensor(f"blk.{index}.{name}.weight")

    # The norms' gains are folded into the matrices that follow them.
    qkv = np.concatenate([weight("attn_q"), weight("attn_k"), weight("attn_v")])
    gate_up = np.concatenate([weight("ffn_gate"), weight("ffn_up")])
    qkv *= weight("attn_norm")
    gate_up *= weight("ffn_norm")
    return _Layer(qkv, weight("attn_output"), gate_up, weight("ffn_down"))


def _feed_forward(x: np.ndarray, layer: _Layer) -> np.ndarray:
    gate, up = np.split(x @ layer.gate_up.T, 2, axis=-1)
    return (gate / (1 + np.exp(-gate)) * up) @ layer.down.T


def _normalised(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon))


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)
