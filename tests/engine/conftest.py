"""Tiny models with random weights, made here: no download, milliseconds a step."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine_driver import Driver
from tiny_models import make_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama() -> Any:
    """A tiny Llama; nobody changes it."""
    return make_model("llama")


@pytest.fixture
def drive(llama: Any) -> Callable[..., Driver]:
    """Make an engine over the tiny Llama."""
    return lambda **options: Driver(llama, **options)
