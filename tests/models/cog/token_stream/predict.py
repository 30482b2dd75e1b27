import pathlib
import time

from cog import BasePredictor, ConcatenateIterator

GO = pathlib.Path("/tmp/go")


class Predictor(BasePredictor):
    def predict(self, words: list[str]) -> ConcatenateIterator[str]:
        yield words[0]
        # The rest only comes once the reader has acted on the first word.
        while not GO.exists():
            time.sleep(0.005)
        yield from words[1:]
