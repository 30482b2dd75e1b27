from cog import BasePredictor


class Predictor(BasePredictor):
    def predict(self, text: str) -> str:
        self.record_metric("tokens", len(text.split()))
        return text
