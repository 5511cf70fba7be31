"""What each kind of task asks for: one validated payload per kind.

A payload is checked twice from this one definition: when it is submitted, and when an engine reads it back. Its bounds
need no model; what only the model knows (its context, its vocabulary) the engine checks, and fails that task alone.
"""

import json
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bitinglip.domain.models import ModelName
from bitinglip.errors import InvalidRequestError

MAX_PROMPT_CHARS = 200_000


def refuse_unstorable(text: str) -> str:
    """The text, if PostgreSQL can store it.

    Raises:
        ValueError: If it holds a NUL or half of a surrogate pair.
    """
    if "\x00" in text:
        message = "contains a NUL character, which PostgreSQL cannot store; remove it"
        raise ValueError(message)
    if _SURROGATE.search(text):
        message = "contains half of a surrogate pair, which is no Unicode text; remove it"
        raise ValueError(message)
    return text


def dump_json(document: dict[str, Any]) -> str:
    """The document as JSON, if PostgreSQL can store it.

    Raises:
        ValueError: If it holds what JSON has no word for, a NUL or half of a surrogate pair.
    """
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        message = f"cannot be written as JSON ({exc}); use objects, lists, text, finite numbers, booleans and null"
        raise ValueError(message) from exc
    # A NUL is written as an escape; the same six characters after an escaped backslash are text.
    refuse_unstorable(_ESCAPED_NUL.sub("\x00", text))
    return text


def _check_json(document: dict[str, Any]) -> dict[str, Any]:
    dump_json(document)
    return document


_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

CleanText = Annotated[str, AfterValidator(refuse_unstorable)]
CleanJson = Annotated[dict[str, Any], AfterValidator(_check_json)]


class Payload(BaseModel):
    """What every payload shares: unknown fields are refused, and it has a title for people.

    Attributes:
        MAIN_FIELD: The field that a lone argument stands for, as in `generate_text.delay("Hello")`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    MAIN_FIELD: ClassVar[str] = "prompt"

    def make_title(self) -> str:
        """A title of at most 200 characters for a task that was given none."""
        return type(self).__name__.removesuffix("Payload").lower()


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: CleanText = Field(min_length=1, max_length=MAX_PROMPT_CHARS)


class TextPayload(Payload):
    """Text generation: a prompt or a conversation, and how to sample.

    A `prompt` is wrapped as one user turn where the model has a chat template, unless `raw`. Greedy decoding is
    `temperature=0`. A seed gives the same text again in float32 only.

    Attributes:
        max_tokens: New tokens at most.
        top_k: 0 keeps every token.
        stop: Strings that end the text; they are not part of it.
        logprobs: How many alternatives to report per token; None reports nothing, 0 just the chosen token.
        json_schema: The text is a JSON document of this schema.
    """

    prompt: CleanText | None = Field(default=None, min_length=1, max_length=MAX_PROMPT_CHARS)
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=1_000)
    raw: bool = False
    max_tokens: int = Field(default=512, ge=1, le=131_072)
    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: list[Annotated[CleanText, Field(min_length=1, max_length=200)]] = Field(default_factory=list, max_length=16)
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    json_schema: CleanJson | None = None

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            message = "prompt: give either a prompt or messages"
            raise ValueError(message)
        if self.prompt is not None and not self.prompt.strip():
            message = "prompt: empty; write what the model should answer"
            raise ValueError(message)
        return self

    def make_title(self) -> str:
        """The beginning of what was asked."""
        text = self.prompt if self.prompt is not None else (self.messages or [])[-1].content
        return " ".join(text.split())[:200] or "text"


class EchoPayload(Payload):
    """The fake engine's work: give the text back, after a while, or fail as told.

    Attributes:
        seconds: How long it takes.
        chunks: In how many `text` events it comes, spread over `seconds`.
        fail: `error` fails for good; `retryable` fails but may be tried again; `out_of_memory` raises what torch would;
            `crash` ends the engine process as a fault in a driver would; `hang` never returns from its step.
        fail_attempts: Fail on that many first attempts only; None fails on each.
    """

    MAIN_FIELD: ClassVar[str] = "text"

    text: CleanText = Field(default="", max_length=MAX_PROMPT_CHARS)
    seconds: float = Field(default=0.0, ge=0, le=3_600)
    chunks: int = Field(default=1, ge=1, le=10_000)
    fail: Literal["error", "retryable", "out_of_memory", "crash", "hang"] | None = None
    fail_attempts: int | None = Field(default=None, ge=1)

    def make_title(self) -> str:
        """The beginning of the text."""
        return " ".join(self.text.split())[:200] or "echo"


class DownloadPayload(Payload):
    """A model that is fetched from the hub, and kept.

    Attributes:
        model: `organisation/name`, or the same with `@revision`.
        revision: A branch, a tag or a commit, in place of one in the name; None: the main branch.
    """

    MAIN_FIELD: ClassVar[str] = "model"

    model: Annotated[CleanText, Field(min_length=1, max_length=500)]
    revision: Annotated[CleanText, Field(min_length=1, max_length=255)] | None = None

    @property
    def name(self) -> ModelName:
        """What it is called on the hub."""
        return ModelName.parse(self.model, self.revision)

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        try:
            _ = self.name
        except InvalidRequestError as exc:
            message = f"{exc.field}: {exc.remedy}"
            raise ValueError(message) from exc
        return self

    def make_title(self) -> str:
        """Which model."""
        return f"download {self.name}"[:200]


class AgentPayload(Payload):
    """Work that an agent takes itself: BitingLip keeps, orders and hands it out, and does not look inside."""

    MAIN_FIELD: ClassVar[str] = "payload"

    payload: CleanJson = Field(default_factory=dict)
