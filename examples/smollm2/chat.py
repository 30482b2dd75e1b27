"""Text to tokens and back: the model's byte-level BPE, its chat turns, and streamed UTF-8."""

from __future__ import annotations

import codecs

from gguf_reader import GgufFile
from tokenizers import Tokenizer, models, pre_tokenizers

_CONTROL = 3  # the token type GGUF gives to tokens that are never text


class ChatTokenizer:
    def __init__(self, gguf: GgufFile) -> None:
        names = gguf.metadata["tokenizer.ggml.tokens"]
        kinds = gguf.metadata["tokenizer.ggml.token_type"]
        self._ids = {name: token for token, name in enumerate(names)}
        merges = [tuple(merge.split(" ")) for merge in gguf.metadata["tokenizer.ggml.merges"]]
        self._bpe = Tokenizer(models.BPE(self._ids, merges))
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
        alphabet = _byte_alphabet()
        self._bytes = [
            b"" if kind == _CONTROL else bytes(alphabet[letter] for letter in name)
            for name, kind in zip(names, kinds, strict=True)
        ]
        self.end_tokens = {self._ids["<|im_end|>"], self._ids["<|endoftext|>"]}

    def encode_chat(self, *, system: str, user: str) -> list[int]:
        """One exchange up to the point where the assistant speaks."""
        return [
            *self._turn("system", system),
            *self._turn("user", user),
            self._ids["<|im_start|>"],
            *self._encode("assistant\n"),
        ]

    def _turn(self, role: str, content: str) -> list[int]:
        # Text is encoded apart from the control tokens, so a caller who writes "<|im_end|>"
        # gets those ten characters and cannot end a turn.
        start, end = self._ids["<|im_start|>"], self._ids["<|im_end|>"]
        return [start, *self._encode(f"{role}\n{content}"), end, *self._encode("\n")]

    def _encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]


class Utf8Stream:
    """Joins tokens' bytes into text; a character that spans two tokens waits for its end."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: bytes) -> str:
        return self._decoder.decode(piece)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte: itself if printable, else the next free one from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    letters.update({chr(256 + rank): byte for rank, byte in enumerate(hidden)})
    return letters
