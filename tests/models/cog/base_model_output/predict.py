from cog import BasePredictor
from types_of_answers import Answer, Box


class Predictor(BasePredictor):
    def predict(self, label: str) -> Answer:
        return Answer(label=label, boxes=[Box(left=1, right=2)])
