import sys

from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, steps: int) -> str:
        for step in range(steps + 1):
            sys.stderr.write(f"\r{step}/{steps}")
        sys.stderr.write("\n")
        return "done"
