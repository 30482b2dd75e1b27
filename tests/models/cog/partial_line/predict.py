import sys

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, text: str) -> str:
        sys.stdout.write(f"line of {text}\nrest of {text}")
        return text
