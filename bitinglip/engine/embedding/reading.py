"""From a text to the token ids that the model reads, cut at its context.

A cut text keeps the special tokens at both its ends (`[CLS]` ... `[SEP]`): models were trained with them.
"""

from dataclasses import dataclass
from typing import Any

from bitinglip.errors import InvalidRequestError

_PROBE = "a"


@dataclass(frozen=True, slots=True)
class ReadText:
    """Token ids of one text.

    Attributes:
        ids: What the model reads.
        truncated: Whether the text has more.
    """

    ids: list[int]
    truncated: bool


class TextReader:
    """Tokenises for one model.

    Args:
        tokenizer: The model's fast tokenizer.
        vocabulary: Token ids that the model has.
        context: Tokens that the model takes; None if it knows no bound.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, context: int | None) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context
        self._ending = _count_ending(tokenizer)

    def read(self, index: int, text: str) -> ReadText:
        """Tokenise one text.

        Args:
            index: Of the text in its request, for the error.
            text: Not empty.

        Raises:
            InvalidRequestError: If no token comes of it, or one that the model does not know.
        """
        ids: list[int] = self._tokenizer(text, verbose=False).input_ids
        if not ids:
            raise InvalidRequestError(f"input.{index}", text, "it becomes no token at all; write some text")
        bad = next((token_id for token_id in ids if not 0 <= token_id < self._vocabulary), None)
        if bad is not None:
            remedy = f"the model knows {self._vocabulary:,} tokens; its tokenizer does not belong to it"
            raise InvalidRequestError(f"input.{index}", f"token {bad}", remedy)
        if self._context is None or len(ids) <= self._context:
            return ReadText(ids, truncated=False)
        ending = ids[len(ids) - self._ending :]
        return ReadText(ids[: self._context - len(ending)] + ending, truncated=True)


def _count_ending(tokenizer: Any) -> int:
    """How many special tokens follow a text."""
    plain: list[int] = tokenizer(_PROBE, add_special_tokens=False).input_ids
    whole: list[int] = tokenizer(_PROBE).input_ids
    starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    start = next(starts, None)
    return 0 if start is None or not plain else len(whole) - start - len(plain)
