from cog import BasePredictor, Path


class Predictor(BasePredictor):
    def predict(self, text: str) -> Path:
        path = Path("/tmp/answer.txt")
        path.write_text(text.upper())
        return path
