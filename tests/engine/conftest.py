"""Tiny models with random weights, made here: no download, milliseconds a step."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.tiny import make_llama, make_tokenizer
from tests.engine.driver import Driver

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.text.engine import TextEngine
from bitinglip.engine.text.loading import LoadedModel


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
