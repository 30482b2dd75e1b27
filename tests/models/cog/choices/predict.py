from cog import BasePredictor, Input

SIZES = {"small": 1, "large": 10}


class Predictor(BasePredictor):
    def predict(self, size: str = Input(choices=list(SIZES), default="small")) -> int:
        return SIZES[size]
