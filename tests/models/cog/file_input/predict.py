from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def predict(
        self,
        document: Path = Input(accept=".txt"),  # noqa: B008
    ) -> int:
        return len(document.read_bytes())
