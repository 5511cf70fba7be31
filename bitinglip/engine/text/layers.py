"""One model layer's share of the batch, as transformers' `Cache` expects its layers.

Every layer reads the same `Span`: which columns are alive and in which rows. Attention writes the step's keys and
values at column `span.end`, in place; the column counts only once the batch moves `end` on. A step that failed half way
can therefore be repeated: it writes the same column again. Linear layers (state-space, convolution) overwrite their
state during the step and cannot be repeated, which `has_states` says.
"""

# transformers' cache classes are half typed: no signatures in the mixins, and `Tensor | None` for what is always there.
# mypy: disable-error-code="no-untyped-call, index, union-attr, arg-type, list-item, override, misc"

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)


@dataclass(slots=True)
class Span:
    """The live part of every attention buffer: rows `[0, rows)`, columns `[start, end)`.

    Attributes:
        row_capacity: Rows allocated.
        column_capacity: Columns allocated.
    """

    rows: int = 0
    start: int = 0
    end: int = 0
    row_capacity: int = 0
    column_capacity: int = 0

    @property
    def width(self) -> int:
        """Live columns: the longest row's length."""
        return self.end - self.start


class AttentionRows(CacheLayerMixin):
    """Keys and values of every row: two buffers `[row_capacity, heads, column_capacity, head_dim]`.

    A sliding layer keeps all columns and shows the last `window - 1` and the new one.

    Args:
        span: Shared with the other layers.
        window: Tokens that the layer attends to; None for all.
    """

    def __init__(self, span: Span, window: int | None) -> None:
        super().__init__()
        self._span = span
        self._window = window
        self.is_sliding = window is not None
        self.sliding_window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for `span`. Zeros: a masked column still takes part in products, and NaN would survive a mask."""
        self.keys = _allocate(key_states, self._span)
        self.values = _allocate(value_states, self._span)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one new column; return the columns to attend to, new one included."""
        span = self._span
        rows, end = span.rows, span.end
        first = end - self._past()
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        return self.keys[:rows, :, first : end + 1], self.values[:rows, :, first : end + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The columns that `update` returns, and how many live ones come before them."""
        past = self._past()
        return past + query_length, self._span.width - past

    def get_seq_length(self) -> int:
        """Columns before the step."""
        return self._span.width

    def get_max_length(self) -> int:
        """No bound of its own: -1 is transformers' word for it."""
        return -1

    def join(self, source: DynamicLayer, slots: slice, lengths: Sequence[int]) -> None:
        """Take over prefilled rows that end at `span.end`."""
        if not source.is_initialized:
            return
        if not self.is_initialized:
            self.lazy_initialization(source.keys, source.values)
        end = self._span.end
        for buffer, states in ((self.keys, source.keys), (self.values, source.values)):
            columns = min(states.shape[-2], max(lengths))
            buffer[slots, :, : end - columns].zero_()
            buffer[slots, :, end - columns : end] = states[:, :, states.shape[-2] - columns :]

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row i becomes what row `order[i]` was; moved rows come from behind the kept ones."""
        live = slice(self._span.start, self._span.end)
        for buffer in self._buffers():
            for to, origin in enumerate(order):
                if to != origin:
                    buffer[to, :, live] = buffer[origin, :, live]

    def move_columns(self, old: Span) -> None:
        """Bring the live columns of `old` to where `span` says, in buffers of its size."""
        if not self.is_initialized:
            return
        span = self._span
        rows, first = old.rows, span.end - old.width
        same_size = (span.row_capacity, span.column_capacity) == (old.row_capacity, old.column_capacity)
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            live = buffer[:rows, :, old.start : old.end]
            if same_size:
                buffer[:rows, :, first : span.end] = live.clone()
            else:
                fresh = _allocate(buffer, span)
                fresh[:rows, :, first : span.end] = live
                setattr(self, name, fresh)

    def _past(self) -> int:
        width = self._span.width
        return width if self._window is None else min(width, self._window - 1)

    def _buffers(self) -> list[Tensor]:
        return [self.keys, self.values] if self.is_initialized else []


class StateRows(LinearAttentionLayer):
    """Constant-size states of every row, of a state-space or convolution layer."""

    def join(self, source: LinearAttentionLayer, slots: slice, lengths: Sequence[int]) -> None:
        """Append prefilled rows."""
        del slots, lengths
        self.dtype, self.device = source.dtype, source.device
        for index in range(source.number_of_states):
            self.conv_kernel_size[index] = source.conv_kernel_size[index]
            self.has_previous_state[index] = source.has_previous_state[index]
            for mine, theirs, initialized in (
                (self.conv_states, source.conv_states, self.is_conv_states_initialized),
                (self.recurrent_states, source.recurrent_states, self.is_recurrent_states_initialized),
            ):
                if theirs[index] is None:
                    continue
                mine[index] = theirs[index] if mine[index] is None else torch.cat([mine[index], theirs[index]])
                initialized[index] = True

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row i becomes what row `order[i]` was."""
        for states in (self.conv_states, self.recurrent_states):
            for index, state in states.items():
                if state is not None:
                    states[index] = state[list(order)] if order else None

    def move_columns(self, old: Span) -> None:
        """States have no columns."""


class HybridRows(StateRows, AttentionRows):
    """A layer with both: a state and keys and values (Falcon-H1, Zamba)."""

    is_compileable = False

    def __init__(self, span: Span, window: int | None, number_of_states: int) -> None:
        AttentionRows.__init__(self, span, window)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Tensor, **kwargs: Any) -> None:
        """Positional tensors are keys and values, named ones a state."""
        if args:
            AttentionRows.lazy_initialization(self, *args)
        else:
            StateRows.lazy_initialization(self, **kwargs)

    def join(self, source: Any, slots: slice, lengths: Sequence[int]) -> None:
        """Take over both."""
        StateRows.join(self, source, slots, lengths)
        AttentionRows.join(self, source, slots, lengths)

    def keep_rows(self, order: Sequence[int]) -> None:
        """Reorder both."""
        StateRows.keep_rows(self, order)
        AttentionRows.keep_rows(self, order)

    def move_columns(self, old: Span) -> None:
        """Move the keys and values."""
        AttentionRows.move_columns(self, old)


LayerRows = AttentionRows | StateRows | HybridRows


def make_layer(source: Any, span: Span) -> Any:
    """The batch's counterpart of a layer that transformers filled during a prefill; None where there is none."""
    if type(source) is LinearAttentionLayer:
        return StateRows(source.number_of_states)
    if type(source) in {LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer}:
        return HybridRows(span, getattr(source, "sliding_window", None), source.number_of_states)
    if type(source) in {DynamicLayer, DynamicSlidingWindowLayer}:
        return AttentionRows(span, getattr(source, "sliding_window", None))
    return DummyLayer() if isinstance(source, DummyLayer) else None


def find_columns(layer: Any) -> list[Tensor]:
    """The keys and values that any layer holds."""
    found = (getattr(layer, "keys", None), getattr(layer, "values", None))
    return [tensor for tensor in found if tensor is not None]


def find_states(layer: Any) -> list[Tensor]:
    """The states that any layer holds."""
    found = [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return [tensor for tensor in found if tensor is not None]


def _allocate(like: Tensor, span: Span) -> Tensor:
    shape = (span.row_capacity, like.shape[1], span.column_capacity, like.shape[3])
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
