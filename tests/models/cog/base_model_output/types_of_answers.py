from typing import Optional

from cog import BaseModel


class Box(BaseModel):
    left: int
    right: int


class Answer(BaseModel):
    label: str
    boxes: list[Box]
    note: Optional[str] = None  # noqa: UP045
