"""What a task of kind `embedding` asks for: a vector for each text."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from bitinglip.domain.payloads import MAX_PROMPT_CHARS, CleanText, Payload

MAX_TEXTS = 2_048
MAX_TOTAL_CHARS = 4_000_000


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_total(texts: list[str]) -> list[str]:
    total = sum(map(len, texts))
    if total > MAX_TOTAL_CHARS:
        message = f"has {total:,} characters in all, at most {MAX_TOTAL_CHARS:,}; split it into several tasks"
        raise ValueError(message)
    return texts


OneText = Annotated[CleanText, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
Texts = Annotated[
    list[OneText],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=MAX_TEXTS),
    AfterValidator(_check_total),
]


class EmbeddingPayload(Payload):
    """A vector for each text. How many numbers they may come to together the engine bounds: only it knows the model.

    Attributes:
        input: A text, or a list of them; kept as a list. What is longer than the model's context is cut, and counted.
        normalize: Whether each vector has length 1, so that dot products are cosines.
        dimensions: Keep the first so many of each vector, as models trained the Matryoshka way allow, before it is
            normalised; None keeps all.
    """

    MAIN_FIELD: ClassVar[str] = "input"

    input: Texts
    normalize: bool = True
    dimensions: int | None = Field(default=None, ge=1, le=65_536)

    def make_title(self) -> str:
        """The beginning of the first text, and how many others there are."""
        more = f" (and {len(self.input) - 1:,} more)" if len(self.input) > 1 else ""
        beginning = " ".join(self.input[0].split())[: 200 - len(more)] or "embedding"
        return beginning + more
