"""Text that is a JSON document of a schema: llguidance says which tokens may come next.

Masks are made with numpy: 0.05 ms a token, where `llguidance.torch` compiles and takes 14 ms. Whitespace is fixed: a
model that may write as many spaces as it likes does.
"""

import json
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from bitinglip.errors import InvalidRequestError


class SchemaCompiler:
    """Compiles schemas for one model.

    Args:
        tokenizer: The model's fast tokenizer.
        vocabulary: Width of the model's logits.
        end_ids: Tokens that end a text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_ids = sorted(end_ids)
        self._compiled: Any = None

    def compile(self, schema: dict[str, Any]) -> "SchemaMatcher":
        """Return a matcher at the beginning of a document.

        Raises:
            InvalidRequestError: If the schema is none, or uses what cannot be enforced.
        """
        if self._compiled is None:
            # A second or so for a large vocabulary, once.
            self._compiled = llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._vocabulary, eos_token=self._end_ids or None
            )
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults={"whitespace_flexible": False})
            matcher = LLMatcher(self._compiled, grammar)
        except (ValueError, TypeError) as exc:
            raise InvalidRequestError("json_schema", schema, _first_line(str(exc))) from exc
        if matcher.is_error():
            raise InvalidRequestError("json_schema", schema, _first_line(matcher.get_error()))
        return SchemaMatcher(matcher, self._vocabulary)


class SchemaMatcher:
    """Where one document stands in its schema.

    Args:
        matcher: llguidance's.
        vocabulary: Width of the logits.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocabulary)

    def allowed(self, device: torch.device) -> Tensor:
        """Return bool[vocabulary]: the tokens that may come next."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits)
        flags = np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._vocabulary]
        return torch.from_numpy(flags.astype(np.bool_)).to(device)

    def push(self, token_id: int) -> bool:
        """Take a token; return whether the document is complete and nothing may follow."""
        self._matcher.consume_token(token_id)
        return bool(self._matcher.is_stopped())


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["it cannot be enforced"])[0]
