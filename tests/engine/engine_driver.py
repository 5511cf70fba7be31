"""Drive a text engine by hand: add, step, collect."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from driven import Driven
from tiny_models import END_ID, make_tokenizer

from bitinglip.engine.base import EngineConfig, EngineRequest, Text
from bitinglip.engine.text.engine import TextEngine
from bitinglip.engine.text.loading import LoadedModel


class Driver(Driven):
    """A text engine and everything it has said.

    Args:
        model: A transformers model.
        chat: Whether its tokenizer has a chat template.
    """

    def __init__(self, model: Any, *, chat: bool = False, max_rows: int = 16, memory_bytes: int = 10**9) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = make_tokenizer(chat=chat)
        config = EngineConfig(model="tiny", folder=None, max_rows=max_rows, memory_bytes=memory_bytes)
        self.engine = TextEngine(config, LoadedModel(model, self.tokenizer, frozenset([END_ID])))

    def add(self, request_id: str, prompt: str = "hello", *, made: Sequence[int] = (), **options: Any) -> None:
        """Add a greedy request, unless options say otherwise."""
        payload = {"prompt": prompt, "max_tokens": 16, "temperature": 0, **options}
        payload = {name: value for name, value in payload.items() if value is not None}
        self.engine.add(EngineRequest(request_id, payload, made))

    def ask(self, prompt: str = "hello", **options: Any) -> dict[str, Any]:
        """Run one request alone; return its result."""
        name = f"ask-{len(self.events)}"
        self.add(name, prompt, **options)
        self.run()
        return self.result(name)

    def text(self, request_id: str) -> str:
        """What was streamed."""
        return "".join(event.text for event in self.events[request_id] if isinstance(event, Text))

    def made(self, request_id: str) -> list[int]:
        """The tokens of a request that asked for logprobs, the end token included."""
        return [entry["token_id"] for entry in self.result(request_id)["logprobs"]]

    def expect(self, prompt: str, tokens: int = 16) -> list[int]:
        """The tokens that `generate` makes of a prompt, alone."""
        ids = torch.tensor([self.tokenizer(prompt).input_ids])
        made = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
        tokens_made: list[int] = made[0, ids.shape[1] :].tolist()
        return tokens_made

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, as a request would give it."""
        text: str = self.tokenizer.decode([i for i in ids if i != END_ID], skip_special_tokens=True)
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def fail_forwards(driver: Driver, monkeypatch: Any, fails: Callable[[int, int], BaseException | None]) -> None:
    """Let forward passes raise: `fails(number, rows)` returns what, or None. It raises after the pass has written."""
    model = driver.engine._model
    forward = model.forward
    count = 0

    def broken(input_ids: Any, *rest: Any) -> Any:
        nonlocal count
        count += 1
        logits = forward(input_ids, *rest)
        if (error := fails(count, input_ids.shape[0])) is not None:
            raise error
        return logits

    monkeypatch.setattr(model, "forward", broken)
