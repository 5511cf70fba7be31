"""Kinds of task are found by entry point, so that another package brings its own."""

import subprocess
import sys
from pathlib import Path

from bitinglip.domain.catalogue import find_kinds, get_kind
from bitinglip.settings import ServerUrls


def test_the_kinds_of_this_package_are_installed() -> None:
    assert {"text", "echo"} <= set(find_kinds())
    assert get_kind("text").needs_model
    assert not get_kind("echo").needs_model


def test_a_kind_names_its_engine_without_importing_it() -> None:
    assert get_kind("echo").import_engine().__module__ == "bitinglip.engine.fake"


def test_another_package_adds_a_kind_by_one_line(tmp_path: Path, urls: ServerUrls) -> None:
    (tmp_path / "shouting.py").write_text(
        "from bitinglip.domain.catalogue import Kind\n"
        "from bitinglip.domain.payloads import Payload\n"
        "class ShoutPayload(Payload):\n    words: str\n"
        "SHOUT = Kind('shout', ShoutPayload, 'shouting:load', needs_model=False)\n"
    )
    installed = tmp_path / "shouting-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[bitinglip.kinds]\nshout = shouting:SHOUT\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from bitinglip import make_request\n"
        "import bitinglip.tasks\n"
        "from bitinglip.celery_app import app\n"
        "print(make_request('shout', {'words': 'hey'}).title, 'bitinglip.shout' in app.tasks)"
    )

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    assert said.stdout.split() == ["shout", "True"]
