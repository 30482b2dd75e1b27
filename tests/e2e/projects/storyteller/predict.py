"""Repeats its prompt word by word."""

from cog import BaseRunner, ConcatenateIterator, Input


class Predictor(BaseRunner):
    def run(self, prompt: str = Input(description="What to repeat")) -> ConcatenateIterator[str]:
        for number, word in enumerate(prompt.split(" ")):
            yield word if number == 0 else f" {word}"
