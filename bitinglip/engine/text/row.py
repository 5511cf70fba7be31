"""One request on its way: what it has made, what of that is sent, what it has cost.

A row outlives its keys and values: after an out-of-memory error they are dropped and made again from `context`, and the
row goes on where it stood, so that no text is sent twice.
"""

from dataclasses import dataclass, field
from typing import Any

from bitinglip.engine.base import EngineEvent, Failed, Finished, JsonObject, Text, Usage
from bitinglip.engine.text.detokenise import Detokeniser, clean
from bitinglip.engine.text.request import TextRequest
from bitinglip.engine.text.sampling import Choice
from bitinglip.engine.text.stop import StopFilter


@dataclass(slots=True, eq=False)
class Row:
    """The state of one request from its admission to its end.

    Attributes:
        arrival: Its number in the order of arrival.
        made: Tokens made so far, by earlier attempts too.
        ended: Whether its last event has been made.
        alone: It was in a prefill that failed, and is read by itself.
        suspect: It was in a step that failed, and nothing else runs beside it until it has made a token.
        starved: Consecutive times that it ran out of memory with nobody beside it.
    """

    request: TextRequest
    choice: Choice
    tokenizer: Any
    end_ids: frozenset[int]
    arrival: int
    made: list[int] = field(init=False)
    alone: bool = False
    suspect: bool = False
    starved: int = 0
    engine_seconds: float = 0.0
    ended: bool = False
    _sent: list[str] = field(default_factory=list)
    _unsent_ids: list[int] = field(default_factory=list)
    _detokeniser: Detokeniser = field(init=False)
    _stops: StopFilter = field(init=False)

    def __post_init__(self) -> None:
        self.made = list(self.request.made_ids)
        self._detokeniser = Detokeniser(self.tokenizer.backend_tokenizer)
        self._stops = StopFilter(self.request.payload.stop)
        for token_id in self.made:
            # Said by an earlier attempt; the same filters hold the same text back again.
            self._sent.append(self._stops.push(self._detokeniser.push(token_id))[0])

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def context(self) -> list[int]:
        """Every token that its next one depends on."""
        return self.request.prompt_ids + self.made

    @property
    def usage(self) -> Usage:
        """What it has cost this attempt."""
        made_now = len(self.made) - len(self.request.made_ids)
        return Usage(self.engine_seconds, len(self.request.prompt_ids), made_now)

    def take(self, token_id: int) -> list[EngineEvent]:
        """Add a token; return the events it causes. `ended` is set when it was the last."""
        self.suspect, self.starved = False, 0
        self.made.append(token_id)
        complete = self.choice.remember(token_id)
        if token_id in self.end_ids:
            return self._finish("stop", self._rest())
        self._unsent_ids.append(token_id)
        text, stopped = self._stops.push(self._detokeniser.push(token_id))
        if stopped:
            return self._finish("stop", text)
        if complete:
            return self._finish("stop", text + self._rest())
        if len(self.made) >= self.request.max_tokens:
            return self._finish("length", text + self._rest())
        return self._send(text)

    def fail(self, code: str, message: str, *, retryable: bool) -> Failed:
        """Return the event that ends it without a result."""
        self.ended = True
        return Failed(self.id, code, message, retryable, self.usage)

    def _rest(self) -> str:
        text, stopped = self._stops.push(self._detokeniser.flush())
        return text if stopped else text + self._stops.flush()

    def _finish(self, reason: str, text: str) -> list[EngineEvent]:
        self.ended = True
        events = self._send(text, last=True)
        result: JsonObject = {"text": "".join(self._sent), "finish_reason": reason}
        if self.request.payload.logprobs is not None:
            result["logprobs"] = self._describe_logprobs()
        return [*events, Finished(self.id, result, self.usage)]

    def _send(self, text: str, *, last: bool = False) -> list[EngineEvent]:
        if not text:
            return []
        ids, self._unsent_ids = self._unsent_ids, []
        self._sent.append(text)
        return [Text(self.id, text, ids, last)]

    def _describe_logprobs(self) -> list[JsonObject]:
        """One entry a token made by this attempt, the end token included."""
        reports = self.choice.reports
        ids = self.made[len(self.made) - len(reports) :]
        return [
            {**self._name(token_id, logprob), "top": [self._name(*other) for other in top]}
            for token_id, (logprob, top) in zip(ids, reports, strict=True)
        ]

    def _name(self, token_id: int, logprob: float) -> JsonObject:
        return {"token": clean(self.tokenizer.decode([token_id])), "token_id": token_id, "logprob": logprob}
