"""The cache changes how much is computed, never what comes out."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

Load = Callable[[str], ModuleType]

_WIDTH, _FEED_FORWARD, _VOCABULARY, _LAYERS = 24, 40, 50, 2
_HEADS, _KV_HEADS = 6, 2


class _Tensors:
    """What Llama asks of a GGUF file: metadata and tensors by name."""

    def __init__(self) -> None:
        self.metadata = {
            "llama.context_length": 64,
            "llama.block_count": _LAYERS,
            "llama.attention.head_count": _HEADS,
            "llama.attention.head_count_kv": _KV_HEADS,
            "llama.embedding_length": _WIDTH,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.freq_base": 100.0,
        }
        random = np.random.default_rng(11)
        kv_width = _WIDTH // _HEADS * _KV_HEADS
        shapes: dict[str, tuple[int, ...]] = {"token_embd": (_VOCABULARY, _WIDTH)}
        shapes["output_norm"] = (_WIDTH,)
        for index in range(_LAYERS):
            layer = f"blk.{index}"
            shapes |= {f"{layer}.{name}": (_WIDTH,) for name in ("attn_norm", "ffn_norm")}
            shapes |= {f"{layer}.{name}": (kv_width, _WIDTH) for name in ("attn_k", "attn_v")}
            shapes |= {f"{layer}.{name}": (_WIDTH, _WIDTH) for name in ("attn_q", "attn_output")}
            shapes |= {f"{layer}.{n}": (_FEED_FORWARD, _WIDTH) for n in ("ffn_gate", "ffn_up")}
            shapes[f"{layer}.ffn_down"] = (_WIDTH, _FEED_FORWARD)
        self._tensors = {
            f"{name}.weight": random.normal(scale=0.4, size=shape).astype(np.float32)
            for name, shape in shapes.items()
        }

    def tensor(self, name: str) -> np.ndarray:
        return self._tensors[name].copy()


@pytest.mark.parametrize("chunk", [1, 3, 5, 64])
def test_a_prompt_gives_the_same_scores_in_pieces_of_any_size(
    load: Load, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    module = load("smollm2/llama")
    network, prompt = module.Llama(_Tensors()), [3, 14, 15, 9, 26, 5, 35, 8, 9, 7]
    whole = network.logits(prompt, network.new_cache(len(prompt)))
    monkeypatch.setattr(module, "_PREFILL_CHUNK", chunk)
    pieces = network.logits(prompt, network.new_cache(32))
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-4)


def test_a_token_added_to_the_cache_scores_like_the_longer_prompt(load: Load) -> None:
    network = load("smollm2/llama").Llama(_Tensors())
    cache = network.new_cache(8)
    network.logits([1, 2, 3], cache)
    added = network.logits([4], cache)
    np.testing.assert_allclose(
        added, network.logits([1, 2, 3, 4], network.new_cache(4)), rtol=1e-4, atol=1e-4
    )
    assert cache.length == 4


def test_the_order_of_tokens_matters(load: Load) -> None:
    network = load("smollm2/llama").Llama(_Tensors())
    forwards = network.logits([1, 2, 3, 4], network.new_cache(4))
    swapped = network.logits([2, 1, 3, 4], network.new_cache(4))
    assert not np.allclose(forwards, swapped, atol=1e-3)
