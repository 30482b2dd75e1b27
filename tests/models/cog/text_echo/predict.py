from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.greeting = "hello"

    def predict(
        self,
        text: str = Input(description="What to repeat"),
        times: int = Input(default=1, ge=1, le=10),
    ) -> str:
        return " ".join([self.greeting, *[text] * times])
