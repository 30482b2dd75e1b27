"""Waits until created predictions have ended, and tells how they did."""

import asyncio
import http.client
import json
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from bench.mesh import Mesh

POLL_S = 0.2
ANSWER_TIMEOUT_S = 30.0
FINAL = {"succeeded", "failed", "canceled"}


@dataclass(frozen=True, slots=True)
class Drained:
    """How the predictions ended; `span_s` is from the first creation to the last end."""

    statuses: dict[str, int]
    span_s: float

    @property
    def per_second(self) -> float:
        return self.statuses.get("succeeded", 0) / self.span_s if self.span_s else 0.0


async def drain(mesh: Mesh, ids: Collection[str], timeout_s: float) -> Drained:
    """Reads the list until all of `ids` have ended or the time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await asyncio.to_thread(_list_predictions, mesh, set(ids))
        ended = [item for item in found.values() if item["status"] in FINAL]
        if len(ended) == len(ids) or time.monotonic() > deadline:
            statuses = Counter(item["status"] for item in ended)
            statuses["not ended"] = len(ids) - len(ended)
            return Drained(statuses=dict(+statuses), span_s=_span_s(ended))
        await asyncio.sleep(POLL_S)


def _list_predictions(mesh: Mesh, wanted: set[str]) -> dict[str, dict[str, Any]]:
    connection = http.client.HTTPConnection(mesh.host, mesh.port, timeout=ANSWER_TIMEOUT_S)
    found: dict[str, dict[str, Any]] = {}
    path: str | None = "/v1/predictions"
    try:
        while path is not None and len(found) < len(wanted):
            connection.request("GET", path, headers={"Authorization": f"Bearer {mesh.token}"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise SystemExit(f"GET {path}: {answer.status} {body[:300]!r}")
            page = json.loads(body)
            found |= {item["id"]: item for item in page["results"] if item["id"] in wanted}
            if any(item["status"] not in FINAL for item in found.values()):
                # Newest first: while these run, the rest of the list tells nothing.
                break
            path = _path(page["next"])
    finally:
        connection.close()
    return found


def _path(url: str | None) -> str | None:
    if not url:
        return None
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def _span_s(ended: list[dict[str, Any]]) -> float:
    if not ended:
        return 0.0
    first = min(datetime.fromisoformat(item["created_at"]) for item in ended)
    last = max(datetime.fromisoformat(item["completed_at"]) for item in ended)
    return (last - first).total_seconds()
