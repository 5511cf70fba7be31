"""A request as the model sees it: token ids, limits and how to choose, all checked.

What pydantic cannot know is checked here against the model: the length of the prompt in tokens, ids within the
vocabulary, a chat template for messages, a schema that compiles. Whatever is wrong fails that request alone.
"""

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from pydantic import ValidationError

from bitinglip.domain.payloads import TextPayload
from bitinglip.domain.task import describe_first_error
from bitinglip.engine.base import EngineRequest
from bitinglip.errors import InvalidRequestError

DEFAULT_MAX_TOKENS: int = TextPayload.model_fields["max_tokens"].default


class PromptTooLongError(InvalidRequestError):
    """The prompt does not fit the model's context, or not the memory for keys and values."""

    code = "prompt_too_long"


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A validated request.

    Attributes:
        prompt_ids: What the model reads.
        made_ids: What earlier attempts have made and sent; the text continues after them.
        max_tokens: Tokens to make in all, those included.
    """

    id: str
    payload: TextPayload
    prompt_ids: list[int]
    made_ids: list[int]
    max_tokens: int

    @property
    def total_tokens(self) -> int:
        """What the request can come to, prompt and text."""
        return len(self.prompt_ids) + self.max_tokens


class RequestReader:
    """Reads requests for one model.

    Args:
        tokenizer: The model's fast tokenizer.
        vocabulary: Token ids that the model has.
        context: Tokens that the model takes in all; None if it knows no bound.
        memory: Tokens of one request that the memory for keys and values holds.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, context: int | None, memory: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._memory = memory

    def read(self, request: EngineRequest) -> TextRequest:
        """Validate and tokenise.

        Raises:
            InvalidRequestError: With the field, its value and what would be right.
            PromptTooLongError: If the model's context cannot hold the prompt and one token.
        """
        payload = read_payload(request.payload)
        prompt_ids = self._tokenise(payload)
        self._check_ids(prompt_ids)
        made_ids = list(request.made_token_ids)
        self._check_ids(made_ids)
        max_tokens = self._limit(payload.max_tokens, len(prompt_ids))
        if len(made_ids) >= max_tokens:
            remedy = f"fewer than max_tokens, which is {max_tokens}"
            raise InvalidRequestError("made_token_ids", f"{len(made_ids)} tokens", remedy)
        return TextRequest(request.id, payload, prompt_ids, made_ids, max_tokens)

    def _tokenise(self, payload: TextPayload) -> list[int]:
        has_template = self._tokenizer.chat_template is not None
        if payload.messages is not None:
            if not has_template:
                remedy = "the model has no chat template; send a prompt instead"
                raise InvalidRequestError("messages", f"{len(payload.messages)} messages", remedy)
            return self._apply_template("messages", [message.model_dump() for message in payload.messages])
        prompt = payload.prompt or ""
        if has_template and not payload.raw:
            return self._apply_template("prompt", [{"role": "user", "content": prompt}])
        ids: list[int] = self._tokenizer(prompt, verbose=False).input_ids
        if not ids:
            raise InvalidRequestError("prompt", prompt, "it becomes no token at all; write some text")
        return ids

    def _apply_template(self, field: str, messages: list[dict[str, str]]) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        except (TemplateError, ValueError, TypeError) as exc:
            raise InvalidRequestError(field, [m["role"] for m in messages], f"the chat template says: {exc}") from exc
        if not ids:
            raise InvalidRequestError(field, "", "the chat template makes no token of it; send raw text")
        return ids

    def _check_ids(self, ids: list[int]) -> None:
        bad = next((token_id for token_id in ids if not 0 <= token_id < self._vocabulary), None)
        if bad is not None:
            remedy = f"the model knows {self._vocabulary:,} tokens; its tokenizer does not belong to it"
            raise InvalidRequestError("token_ids", bad, remedy)

    def _limit(self, max_tokens: int, prompt_tokens: int) -> int:
        """How many tokens may be made. A max_tokens left at its default shrinks to what there is room for."""
        wish = max_tokens == DEFAULT_MAX_TOKENS
        prompt = f"{prompt_tokens:,} tokens"
        if self._context is not None:
            room = self._context - prompt_tokens
            if room < 1:
                remedy = f"the model takes {self._context:,} tokens in all, one of them new; shorten the prompt"
                raise PromptTooLongError("prompt", prompt, remedy)
            if max_tokens > room and not wish:
                remedy = (
                    f"the model takes {self._context:,} tokens and the prompt has {prompt_tokens:,}; at most {room:,}"
                )
                raise InvalidRequestError("max_tokens", max_tokens, remedy)
            max_tokens = min(max_tokens, room)
        room = self._memory - prompt_tokens
        if room < 1 or (max_tokens > room and not wish):
            remedy = (
                f"with max_tokens {max_tokens:,} it needs {prompt_tokens + max_tokens:,} tokens of memory and there is "
                f"room for {self._memory:,}; shorten it, lower max_tokens, or give the worker more memory"
            )
            raise PromptTooLongError("prompt", prompt, remedy)
        return min(max_tokens, room)


def read_payload(document: dict[str, Any]) -> TextPayload:
    """Validate a payload.

    Raises:
        InvalidRequestError: Naming the first field that is wrong.
    """
    try:
        return TextPayload.model_validate(document)
    except ValidationError as exc:
        raise describe_first_error(exc) from exc
