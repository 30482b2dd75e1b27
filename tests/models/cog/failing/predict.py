from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, text: str) -> str:
        print("about to fail")
        raise ValueError(f"cannot work with {text}")
