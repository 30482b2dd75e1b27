import os
import time

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("no answer of the driver")
        # A process that fails at once loses its last lines in the server.
        time.sleep(0.1)
        os._exit(3)

    def predict(self, text: str) -> str:
        return text
