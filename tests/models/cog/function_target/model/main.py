from settings import SUFFIX


def shout(text: str, loud: bool = True) -> str:
    return (text.upper() if loud else text) + SUFFIX
