"""The kind `sized`: echoes on engines of a given size, whose loading fails as their folder says."""

import json
import os
import time
from pathlib import Path

from bitinglip.domain.catalogue import Kind
from bitinglip.domain.payloads import EchoPayload
from bitinglip.engine.base import EngineConfig
from bitinglip.engine.fake import FakeEngine
from bitinglip.errors import InvalidModelError, ModelTooLargeError

SIZED = Kind("sized", EchoPayload, "tests.engine_process.sized:SizedEngine")


class SizedEngine(FakeEngine):
    """Takes what its weights take; `behaviour.json` may say otherwise."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        assert config.folder is not None
        said = json.loads(next(config.folder.glob("behaviour*.json")).read_text())
        time.sleep(said.get("seconds", 0))
        if said.get("crash"):
            os._exit(9)
        if "invalid" in said:
            raise InvalidModelError("model", config.model, said["invalid"])
        if "fail" in said:
            raise RuntimeError(said["fail"])
        size = said.get("held", said["size"])
        if config.memory_bytes is not None and size > config.memory_bytes:
            raise ModelTooLargeError(config.model, needed_bytes=size, budget_bytes=config.memory_bytes)
        self.size = size

    @property
    def memory_bytes(self) -> int:
        return int(self.size)


def make_folder(path: Path, size: int, **behaviour: object) -> str:
    """A model folder with weights of so many bytes; returns the model's name."""
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["Sized"]}')
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    (path / "behaviour.json").write_text(json.dumps({"size": size, **behaviour}))
    return str(path)


def install(folder: Path) -> str:
    """Make the kind known to every process that has this folder, and the checkout, in its path; returns the folder."""
    metadata = folder / "sized_kind-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sized-kind\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[bitinglip.kinds]\nsized = tests.engine_process.sized:SIZED\n")
    return str(folder)
