"""The rows that decode together: one rectangle of keys and values per layer, right-aligned.

              start              end        column_capacity
    row 0     a  a  a  a  a  a  a │ .  .  .  .
    row 1     .  .  .  b  b  b  b │ .  .  .  .       each step writes column `end` of every row
    row 2     .  .  c  c  c  c  c │ .  .  .  .

To the model this is a left-padded batch in the middle of `generate`, which every causal language model supports:
sliding windows and ALiBi, which count columns, stay right. A row that leaves is overwritten by the last one; when the
longest leaves, `start` moves right and costs nothing; when `end` reaches the capacity, the live columns move back to
the left edge, which `columns_for` makes rare.

Rejected: left-aligned rows with one write position each (sliding windows and ALiBi break), one `torch.cat` per layer
and step as `DynamicCache` does (copies the whole cache each step), paged blocks (need a custom attention kernel).

Invariant: row i holds exactly `lengths[i]` live tokens, the last of them at column `end - 1`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DummyLayer

from bitinglip.engine.text.layers import HybridRows, LayerRows, Span, StateRows, find_columns, find_states, make_layer

MIN_SLACK_COLUMNS = 32


def columns_for(tokens: int) -> int:
    """Columns to allocate for rows of up to `tokens`: a quarter more, so that moving back is paid by many steps."""
    return tokens + max(MIN_SLACK_COLUMNS, tokens // 4)


class RowBatch(Cache):
    """The key-value rows of every decoding request.

    Args:
        device: Where the model takes its input.

    Attributes:
        span: Which rows and columns are alive.
        lengths: Tokens of each row.
        intact: False once memory ran out half way through a move; `clear` it then.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(layers=[])
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Forget every row and free all memory."""
        self.layers.clear()
        self.span = Span()
        self.lengths: list[int] = []
        self.intact = True
        self._mask = torch.zeros((0, 0), dtype=torch.long, device=self._device)
        self._positions = torch.zeros((0, 1), dtype=torch.long, device=self._device)

    @property
    def attention_mask(self) -> Tensor:
        """int64[rows, width + 1]: 1 where the row has a token, the step's own included."""
        span = self.span
        return self._mask[: span.rows, span.start : span.end + 1]

    @property
    def positions(self) -> Tensor:
        """int64[rows, 1]: where the step's token stands in its row."""
        return self._positions[: self.span.rows]

    @property
    def is_linear(self) -> list[bool]:
        """Which layers hold nothing but a state; the masks are made for the others."""
        return [isinstance(layer, StateRows) and not isinstance(layer, HybridRows) for layer in self.layers]

    @property
    def has_states(self) -> bool:
        """Whether a failed step leaves rows that cannot be used again."""
        return any(isinstance(layer, StateRows) for layer in self.layers)

    def tensors(self) -> list[Tensor]:
        """Everything the rows hold."""
        return find_tensors(self)

    def join(self, source: Cache, lengths: Sequence[int], *, row_capacity: int, column_capacity: int) -> None:
        """Append prefilled rows.

        Args:
            source: What the prefill filled, its rows right-aligned.
            lengths: Tokens in each of its rows.
            row_capacity: Rows to allocate.
            column_capacity: Columns to allocate; more than the longest row has tokens.
        """
        self.intact = False
        if not self.layers:
            self.layers.extend(make_layer(layer, self.span) for layer in source.layers)
        longest = max(lengths)
        span = self.span
        end = max(span.end, longest)
        if end >= column_capacity:
            end = max(span.width, longest)
        self._move(end, row_capacity, column_capacity)
        self.intact = False
        start = min(span.start, end - longest) if span.rows else end - longest
        first_slot, last_slot = span.rows, span.rows + len(lengths)
        pairs: list[tuple[Any, Any]] = list(zip(self.layers, source.layers, strict=True))
        for mine, theirs in pairs:
            if isinstance(mine, DummyLayer):
                continue
            mine.join(theirs, slice(first_slot, last_slot), lengths)
        span.rows, span.start = last_slot, start
        self.lengths.extend(lengths)
        self._describe(first_slot)
        self.intact = True

    def commit(self) -> None:
        """The step succeeded: its column counts."""
        self.span.end += 1
        self._positions[: self.span.rows] += 1
        self.lengths = [length + 1 for length in self.lengths]

    def make_room(self) -> None:
        """Make sure that column `end` exists."""
        span = self.span
        if span.end == span.column_capacity:
            columns = span.column_capacity if span.width < span.column_capacity else columns_for(span.width + 1)
            self._move(span.width, span.row_capacity, columns)

    def leave(self, slots: set[int]) -> list[int]:
        """Drop rows; return the new order, as indices into the old one."""
        rows = self.span.rows
        kept = [index for index in range(rows) if index not in slots]
        count = len(kept)
        movers = iter(index for index in kept if index >= count)
        order = [index if index not in slots else next(movers) for index in range(count)]
        for layer in self._filled():
            layer.keep_rows(order)
        for to, origin in enumerate(order):
            if to != origin:
                self._mask[to] = self._mask[origin]
                self._positions[to] = self._positions[origin]
        self.lengths = [self.lengths[index] for index in order]
        self.span.rows = count
        if count:
            self.span.start = self.span.end - max(self.lengths)
        else:
            self.span.start = self.span.end = 0
        return order

    def shrink(self, row_capacity: int, column_capacity: int) -> None:
        """Reallocate to exactly this size, or free everything when no row is left."""
        if self.span.rows:
            self._move(self.span.width, row_capacity, column_capacity)
        else:
            self.clear()

    def _move(self, end: int, row_capacity: int, column_capacity: int) -> None:
        """Put the live columns so that they end at `end`, in buffers of this size."""
        span = self.span
        old = replace(span)
        if (end, row_capacity, column_capacity) == (old.end, old.row_capacity, old.column_capacity):
            return
        self.intact = False
        span.end, span.start = end, end - old.width
        span.row_capacity, span.column_capacity = row_capacity, column_capacity
        for layer in self._filled():
            layer.move_columns(old)
        if (row_capacity, column_capacity) != (old.row_capacity, old.column_capacity):
            self._mask = torch.zeros((row_capacity, column_capacity), dtype=torch.long, device=self._device)
            self._positions = torch.zeros((row_capacity, 1), dtype=torch.long, device=self._device)
        self._describe(0)
        self.intact = True

    def _describe(self, first: int) -> None:
        """Write mask and positions of the rows from `first` on. The mask needs no change until rows move."""
        span = self.span
        if first == span.rows:
            return
        lengths = torch.tensor(self.lengths[first:], device=self._device).unsqueeze(1)
        columns = torch.arange(span.column_capacity, device=self._device)
        self._mask[first : span.rows] = columns >= span.end - lengths
        self._positions[first : span.rows] = lengths

    def _filled(self) -> list[LayerRows]:
        layers: list[Any] = self.layers
        return [layer for layer in layers if not isinstance(layer, DummyLayer)]


def find_tensors(cache: Cache) -> list[Tensor]:
    """The keys, values and states that any cache holds."""
    return [tensor for layer in cache.layers for tensor in (*find_columns(layer), *find_states(layer))]
