"""SmolLM2-135M-Instruct on a CPU: chat completion, streamed token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from chat import ChatTokenizer, Utf8Stream
from cog import BaseRunner, ConcatenateIterator, Input
from gguf_reader import GgufFile
from llama import Llama, softmax

WEIGHTS = Path(__file__).parent / "weights" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Predictor(BaseRunner):
    def setup(self) -> None:
        if not WEIGHTS.exists():
            raise FileNotFoundError(
                f"weights/{WEIGHTS.name} is missing: run `python examples/prepare.py smollm2` "
                "and push the model again"
            )
        started = time.perf_counter()
        gguf = GgufFile(WEIGHTS)
        self.tokenizer = ChatTokenizer(gguf)
        self.llama = Llama(gguf)
        print(f"SmolLM2-135M-Instruct ready in {time.perf_counter() - started:.1f} s")

    def run(
        self,
        prompt: str = Input(
            description="What to say to the model", min_length=1, max_length=100_000
        ),
        system_prompt: str = Input(
            description="What the model is told about its part",
            default=SYSTEM_PROMPT,
            max_length=100_000,
        ),
        max_tokens: int = Input(description="Most tokens to write", default=64, ge=1, le=512),
        temperature: float = Input(
            description="0 takes the likeliest token each time; higher is more varied",
            default=0.0,
            ge=0,
            le=2,
        ),
        top_p: float = Input(
            description="Draw only from the likeliest tokens that make up this much probability",
            default=0.95,
            ge=0,
            le=1,
        ),
        seed: int | None = Input(
            description="Same seed, same text; random when left out", default=None, ge=0
        ),
    ) -> ConcatenateIterator[str]:
        tokens = self.tokenizer.encode_chat(system=system_prompt, user=prompt)
        room = self.llama.context_length - max_tokens
        if len(tokens) > room:
            raise ValueError(
                f"prompt: {len(tokens)} tokens with the system prompt, but only {room} fit "
                f"before max_tokens={max_tokens}: shorten the prompt"
            )
        self.record_metric("input_token_count", len(tokens))
        sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
        text = Utf8Stream()
        for token in self._generate(tokens, sampler=sampler, max_tokens=max_tokens):
            if piece := text.push(self.tokenizer.token_bytes(token)):
                yield piece
        if piece := text.finish():
            yield piece

    def _generate(self, tokens: list[int], *, sampler: Sampler, max_tokens: int) -> Iterator[int]:
        started = time.perf_counter()
        cache = self.llama.new_cache(len(tokens) + max_tokens)
        count = 0
        while count < max_tokens:
            token = sampler.pick(self.llama.logits(tokens, cache))
            if count == 0:
                self.record_metric("time_to_first_token", time.perf_counter() - started)
            if token in self.tokenizer.end_tokens:
                break
            count += 1
            yield token
            tokens = [token]
        self.record_metric("output_token_count", count)
        self.record_metric("tokens_per_second", count / (time.perf_counter() - started))


class Sampler:
    """Draws the next token from the model's scores."""

    def __init__(self, *, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def pick(self, logits: np.ndarray) -> int:
        if self._temperature == 0:
            return int(logits.argmax())
        probabilities = softmax(logits.astype(np.float64) / self._temperature)
        order = np.argsort(-probabilities)
        # The token that crosses top_p is kept, so there is always one to draw.
        kept = order[: np.searchsorted(probabilities[order].cumsum(), self._top_p) + 1]
        weights = probabilities[kept] / probabilities[kept].sum()
        return int(self._random.choice(kept, p=weights))
