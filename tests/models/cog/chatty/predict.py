from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, lines: int) -> int:
        for number in range(lines):
            print(f"line {number:06d} " + "x" * 80)
        return lines
