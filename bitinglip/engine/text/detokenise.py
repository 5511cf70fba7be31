"""Token ids to text, a token at a time, whole characters only.

Invariant: everything returned, joined, is what decoding all ids at once gives, but for NUL, which PostgreSQL cannot
store: it becomes a replacement character.
"""

from typing import Any

from tokenizers.decoders import DecodeStream

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokeniser:
    """The text of one request.

    Args:
        backend: The tokenizer's Rust side.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._sent = ""

    def push(self, token_id: int) -> str:
        """Return the new whole characters; empty while a character is incomplete."""
        self._ids.append(token_id)
        try:
            text: str = self._stream.step(self._backend, token_id) or ""
        except Exception:
            # The Rust side raises a bare Exception where a decoder strips what an earlier token had added.
            self._stream = DecodeStream(ids=self._ids, skip_special_tokens=True)
            return self.flush()
        self._sent += text
        return clean(text)

    def flush(self) -> str:
        """Return what is left at the end; half a character becomes a replacement character."""
        whole: str = self._backend.decode(self._ids, skip_special_tokens=True)
        rest = whole[len(self._sent) :] if whole.startswith(self._sent) else ""
        self._sent += rest
        return clean(rest)


def clean(text: str) -> str:
    """Return the text as it can be stored."""
    return text.replace("\0", REPLACEMENT)
