import time

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("loading weights")
        # A process that fails at once loses its last lines in the server.
        time.sleep(0.1)
        raise RuntimeError("weights are missing")

    def predict(self, text: str) -> str:
        return text
