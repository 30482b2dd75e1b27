"""Reverses the bytes of a file."""

import tempfile

from cog import BaseRunner, Input, Path


class Predictor(BaseRunner):
    def run(self, file: Path = Input(description="Any file")) -> Path:
        mirrored = Path(tempfile.mkdtemp()) / "mirrored.bin"
        mirrored.write_bytes(file.read_bytes()[::-1])
        return mirrored
