"""Answers its input: what is left when the model costs nothing is the platform's own time."""

from cog import BaseRunner, Input


class Predictor(BaseRunner):
    def run(self, text: str = Input(description="What to answer", default="hi")) -> str:
        return text
