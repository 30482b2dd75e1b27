"""What the engine host is started with; apart, so that its supervisor loads no native library."""

from dataclasses import asdict, dataclass

import orjson

# The mesh key comes by the environment, where other users of the host cannot see it.
MESH_KEY_VARIABLE = "REPRISE_ENGINE_HOST_MESH_KEY"


@dataclass(frozen=True, slots=True)
class HostOrder:
    """`sandbox` are the words before the command of the child that reads untrusted files."""

    socket: str
    cache_dir: str
    parent_pid: int
    sandbox: tuple[str, ...] = ()

    def to_text(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_text(cls, text: str) -> "HostOrder":
        document = orjson.loads(text)
        document["sandbox"] = tuple(document["sandbox"])
        return cls(**document)
