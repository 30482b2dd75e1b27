import time

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, seconds: float) -> str:
        print("asleep")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.01)
        return "awake"
