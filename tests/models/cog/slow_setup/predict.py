import time

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        print("downloading for ever")
        time.sleep(600)

    def predict(self, text: str) -> str:
        return text
