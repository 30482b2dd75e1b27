import time

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, seconds: float) -> str:
        print("stuck")
        time.sleep(seconds)
        return "free"
