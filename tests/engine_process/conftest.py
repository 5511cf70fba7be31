"""An engine process without a model, and a kind of task that another package brings."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitinglip.engine.link import EngineLink
from tests.engine_process.echoes import Requests


@pytest.fixture
def link() -> Iterator[EngineLink]:
    opened = EngineLink(devices=("cpu",), slots=4)
    yield opened
    opened.close()


@pytest.fixture
def requests(link: EngineLink) -> Requests:
    return Requests(link)


@pytest.fixture
def odd_package(tmp_path: Path) -> Path:
    """Where Python finds kinds: `teller` says what was made; the others, as they are called, do not get loaded."""
    folder = tmp_path / "odd"
    metadata = folder / "odd_kinds-1.0.dist-info"
    metadata.mkdir(parents=True)
    names = ("sleeper", "crasher", "breaker", "teller")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-kinds\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[bitinglip.kinds]\n" + "".join(f"{name} = odd_kinds:{name.upper()}\n" for name in names)
    )
    (folder / "odd_kinds.py").write_text(
        "import atexit, os, time\n"
        "from bitinglip.domain.catalogue import Kind\n"
        "from bitinglip.domain.payloads import EchoPayload\n"
        "from bitinglip.engine.base import EngineRequest\n"
        "from bitinglip.engine.fake import FakeEngine\n"
        "from bitinglip.errors import EngineBrokenError\n"
        "SLEEPER = Kind('sleeper', EchoPayload, 'odd_kinds:sleep', needs_model=False)\n"
        "CRASHER = Kind('crasher', EchoPayload, 'odd_kinds:crash', needs_model=False)\n"
        "def sleep(config): time.sleep(3600)\n"
        "def crash(config): os._exit(4)\n"
        "BREAKER = Kind('breaker', EchoPayload, 'odd_kinds:break_', needs_model=False)\n"
        "def break_(config):\n"
        "    atexit.register(time.sleep, 3600)\n"
        "    raise EngineBrokenError('the context is poisoned')\n"
        "TELLER = Kind('teller', EchoPayload, 'odd_kinds:Teller', needs_model=False)\n"
        "class Teller(FakeEngine):\n"
        "    def add(self, request):\n"
        "        super().add(EngineRequest(request.id, {'text': str(request.made_token_ids)}))\n"
    )
    return folder
