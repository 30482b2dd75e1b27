"""The small web page."""

import re
from pathlib import Path

from services.gateway import pages

DIRECTORY = Path(pages.__file__).parent / "page"
FILES = sorted(DIRECTORY.iterdir())


def test_the_page_stays_small() -> None:
    assert sum(path.stat().st_size for path in FILES) < 15_000


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing_inline() -> None:
    for path in FILES:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.findall(r"""["'(]https?://""", text), path
    html = (DIRECTORY / "index.html").read_text()
    assert not re.findall(r"<script(?![^>]* src=)|\son\w+=|style=", html)


def test_the_script_never_writes_html() -> None:
    script = (DIRECTORY / "app.js").read_text()
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
