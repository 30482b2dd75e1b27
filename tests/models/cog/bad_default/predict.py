from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def predict(
        self,
        steps: int = Input(default=0, ge=1, le=50),
    ) -> str:
        return str(steps)
