"""The loop: one `step()` reads a piece of a prompt and gives every running row one token.

    intake ──────► unread / long ──────► rows ──────► Finished
    checked and    memory is reserved,   decode together
    tokenised      the prompt is read    in one `RowBatch`

Rows join and leave between steps. A request is admitted in order of arrival; only its reading may be overtaken by
shorter prompts. What fails goes back to the intake with what it has made, or ends with `Failed`; nothing is lost.
"""

from collections import deque
from time import perf_counter

import torch
from torch import Tensor

from bitinglip.engine.base import EngineConfig, EngineEvent, EngineRequest
from bitinglip.engine.text.admission import RowLimit, plan_budget
from bitinglip.engine.text.batch import RowBatch, columns_for
from bitinglip.engine.text.forward import CausalModel, measure_traits
from bitinglip.engine.text.intake import Intake
from bitinglip.engine.text.loading import LoadedModel
from bitinglip.engine.text.memory import count_bytes, count_weights, free_memory, is_out_of_memory
from bitinglip.engine.text.prefill import WHOLE_TOKENS, Pace, Prefill, take_group
from bitinglip.engine.text.request import RequestReader
from bitinglip.engine.text.row import Row
from bitinglip.engine.text.sampling import Sampler, make_choice
from bitinglip.engine.text.structured import SchemaCompiler
from bitinglip.errors import EngineBrokenError
from bitinglip.telemetry import get_logger

# Tokens: two cores read some hundred in a quarter of a second, a GPU some thousands.
FIRST_CHUNK = {"cpu": 256}
LARGEST_CHUNK = {"cpu": 512}
MOST_STARVED = 5


class TextEngine:
    """Continuous batching for one causal language model.

    Args:
        config: Its limits.
        loaded: Its weights and tokenizer.
    """

    @torch.inference_mode()
    def __init__(self, config: EngineConfig, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._log = get_logger(model=config.model)
        self._model = CausalModel(loaded.model)
        self._traits = traits = measure_traits(self._model)
        self._weights = count_weights(loaded.model)
        self._budget = plan_budget(config, self._weights, traits)
        self._limit = RowLimit(config.max_rows)
        known = self._model.embedding.shape[0]
        self._reader = RequestReader(loaded.tokenizer, known, self._model.context, self._budget.longest)
        self._schemas = SchemaCompiler(loaded.tokenizer, traits.vocabulary, loaded.end_ids)
        kind = self._model.device.type
        self._pace = Pace(FIRST_CHUNK.get(kind, 2048), LARGEST_CHUNK.get(kind, 8192))
        self._intake = Intake(self._open_row, ahead=config.max_rows)
        self._cancelled: set[str] = set()
        self._unread: list[Row] = []
        self._long: deque[Prefill] = deque()
        self._long_is_next = False
        self._batch = RowBatch(self._model.device)
        self._rows: list[Row] = []
        self._tokens = torch.zeros((0, 1), dtype=torch.long, device=self._model.device)
        self._sampler: Sampler | None = None

    def add(self, request: EngineRequest) -> None:
        """Take a request; a later step checks it."""
        self._intake.add(request)

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step."""
        self._cancelled.add(request_id)

    @property
    def busy(self) -> bool:
        """Whether any request has not ended."""
        return bool(len(self._intake) or self._unread or self._long or self._rows)

    @property
    def prefilling(self) -> bool:
        """Whether a prompt waits to be read."""
        return bool(len(self._intake) or self._unread or self._long)

    @property
    def memory_bytes(self) -> int:
        """Weights, keys and values on the fullest device."""
        held = [*self._batch.tensors(), *(tensor for job in self._long for tensor in job.tensors())]
        return max((self._weights + count_bytes(held)).values(), default=0)

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """Read a chunk, give every running row a token.

        Raises:
            EngineBrokenError: If the device cannot go on.
        """
        try:
            events = self._drop_cancelled()
            events += self._intake.check_some()
            self._admit()
            events += self._prefill()
            events += self._decode()
        except torch.AcceleratorError as exc:
            raise EngineBrokenError(f"the device cannot go on: {exc}") from exc
        return events

    def close(self) -> None:
        """Let go of the model and its memory."""
        self._release()
        del self._model, self._loaded, self._reader, self._schemas, self._intake
        self._weights.clear()
        free_memory()

    # The way in

    def _open_row(self, request: EngineRequest, arrival: int) -> Row:
        read = self._reader.read(request)
        schema = read.payload.json_schema
        matcher = None if schema is None else self._schemas.compile(schema)
        choice = make_choice(read, self._traits.vocabulary, self._model.device, matcher)
        return Row(read, choice, self._loaded.tokenizer, self._loaded.end_ids, arrival)

    def _drop_cancelled(self) -> list[EngineEvent]:
        if not self._cancelled:
            return []
        ids, self._cancelled = self._cancelled, set()
        events = self._intake.drop(ids)
        gone = [row for row in self._live() if row.id in ids]
        events += [row.fail("cancelled", "cancelled while it ran", retryable=False) for row in gone]
        self._remove(gone)
        return events

    def _admit(self) -> None:
        """Reserve memory for waiting rows, in order, as long as the next one fits."""
        waiting, live = self._intake.waiting, self._live()
        while waiting and len(live) < self._limit.now:
            row = waiting[0]
            exclusive = row.suspect or any(other.suspect for other in live)
            if live and (exclusive or not self._fits([*live, row])):
                return
            live.append(waiting.popleft())
            whole = max(WHOLE_TOKENS, self._pace.chunk(decoding=len(self._rows)))
            if self._traits.chunks and len(row.context) > whole:
                self._long.append(Prefill([row], self._model.make_cache()))
            else:
                self._unread.append(row)

    def _fits(self, live: list[Row]) -> bool:
        decoding = set(map(id, self._rows))
        contexts = [len(row.context) for row in live if id(row) not in decoding]
        return self._budget.fits([row.request.total_tokens for row in live], contexts)

    # Reading prompts

    def _prefill(self) -> list[EngineEvent]:
        """Read one chunk: of the oldest long prompt, or of the short ones, in turn."""
        if not self._long and not self._unread:
            return []
        job, limit = self._next_job()
        try:
            self._shrink_for(job)
            return self._read(job, limit)
        except torch.AcceleratorError:
            raise
        except Exception as exc:
            failure = exc.with_traceback(None)
        return self._blame_prefill(job.rows, failure)

    def _next_job(self) -> tuple[Prefill, int | None]:
        decoding, unread = len(self._rows), len(self._unread)
        if self._long and (self._long_is_next or not unread):
            self._long_is_next = False
            return self._long.popleft(), self._pace.chunk(decoding=decoding)
        self._long_is_next = True
        group = take_group(self._unread, self._pace.chunk(decoding=decoding, reading=unread), pads=self._traits.pads)
        chosen = set(map(id, group))
        self._unread = [row for row in self._unread if id(row) not in chosen]
        return Prefill(group, self._model.make_cache()), None

    def _read(self, job: Prefill, limit: int | None) -> list[EngineEvent]:
        began = perf_counter()
        logits, tokens = job.read(self._model, limit)
        if logits is None:
            self._synchronize()
            self._note_chunk(job, perf_counter() - began, tokens)
            self._long.appendleft(job)
            return []
        chosen, host = Sampler([row.choice for row in job.rows], logits.device).choose(logits)
        failure = self._join(job, chosen)
        self._note_chunk(job, perf_counter() - began, tokens)
        # Chosen is chosen: a row that found no room in the batch keeps its token and comes back later.
        events = self._deliver(job.rows, host)
        if failure is not None:
            events += self._blame_prefill([row for row in job.rows if not row.ended], failure)
        return events

    def _note_chunk(self, job: Prefill, seconds: float, tokens: int) -> None:
        self._pace.note_chunk(seconds, tokens)
        for row in job.rows:
            row.engine_seconds += seconds / len(job.rows)

    def _join(self, job: Prefill, tokens: Tensor) -> Exception | None:
        """Take prefilled rows into the batch; return what prevented it."""
        rows, columns = self._capacity_for(self._rows + job.rows)
        try:
            joined = torch.cat([self._tokens, tokens.to(self._tokens.device)])
            self._batch.join(job.cache, job.lengths, row_capacity=rows, column_capacity=columns)
        except torch.AcceleratorError:
            raise
        except Exception as exc:
            return exc.with_traceback(None)
        self._tokens, self._rows = joined, self._rows + job.rows
        self._sampler = None
        return None

    def _capacity_for(self, rows: list[Row]) -> tuple[int, int]:
        """The rectangle for these rows: the present one if they fit, else room for more rows where memory allows."""
        span = self._batch.span
        columns = columns_for(max(row.request.total_tokens for row in self._live() + rows))
        if len(rows) <= span.row_capacity and columns <= span.column_capacity:
            return span.row_capacity, span.column_capacity
        roomy = min(self._limit.now, 1 << (len(rows) - 1).bit_length())
        contexts = [len(row.context) for row in self._live() if row not in rows]
        if self._budget.allows(max(roomy, len(rows)), columns, contexts):
            return max(roomy, len(rows)), columns
        return len(rows), columns

    def _shrink_for(self, job: Prefill) -> None:
        """Give back rows and columns kept for later, where a prefill needs the memory now."""
        span = self._batch.span
        contexts = [*job.lengths, *(length for other in self._long for length in other.lengths)]
        if self._rows and not self._budget.allows(span.row_capacity, span.column_capacity, contexts):
            columns = columns_for(max(row.request.total_tokens for row in self._rows))
            self._batch.shrink(len(self._rows), min(columns, span.column_capacity))

    # Making tokens

    def _decode(self) -> list[EngineEvent]:
        if not self._rows:
            return []
        try:
            began = perf_counter()
            self._batch.make_room()
            batch = self._batch
            logits = self._model.forward(self._tokens, batch.attention_mask, batch.positions, batch)
            if self._sampler is None:
                self._sampler = Sampler([row.choice for row in self._rows], logits.device)
            tokens, host = self._sampler.choose(logits)
            self._tokens = tokens.to(self._tokens.device)
            batch.commit()
        except torch.AcceleratorError:
            raise
        except Exception as exc:
            failure = exc.with_traceback(None)
        else:
            seconds = perf_counter() - began
            self._pace.note_step(seconds)
            self._limit.raise_after_calm()
            for row in self._rows:
                row.engine_seconds += seconds / len(self._rows)
            return self._deliver(self._rows, host)
        return self._blame_decode(failure)

    def _deliver(self, rows: list[Row], tokens: list[int | None]) -> list[EngineEvent]:
        """Give each row its token; those that end leave the batch."""
        events: list[EngineEvent] = []
        ended = []
        for row, token in zip(rows, tokens, strict=True):
            if token is None:
                message = "the model's numbers are not finite for this request; try float32"
                events.append(row.fail("engine_error", message, retryable=False))
            else:
                events += self._take(row, token)
            if row.ended:
                ended.append(row)
        self._remove(ended)
        return events

    def _take(self, row: Row, token: int) -> list[EngineEvent]:
        try:
            return row.take(token)
        except Exception as exc:  # A tokenizer's or a schema's Rust side raises anything; the row is to blame, alone.
            self._log.warning("token_failed", request_id=row.id, error=type(exc).__name__)
            return [row.fail("engine_error", f"its text cannot be made: {exc}", retryable=False)]

    # When something fails

    def _blame_prefill(self, rows: list[Row], failure: Exception) -> list[EngineEvent]:
        if is_out_of_memory(failure):
            return self._survive_starvation(rows, failure)
        if not self._batch.intact:
            self._intake.put_back(self._rows)
            self._release_batch()
        if len(rows) == 1:
            self._log.warning("prefill_failed", request_id=rows[0].id, error=type(failure).__name__)
            return [rows[0].fail("engine_error", f"the model cannot read it: {failure}", retryable=False)]
        for row in rows:
            row.alone = True
        self._intake.put_back(rows)
        return []

    def _blame_decode(self, failure: Exception) -> list[EngineEvent]:
        if is_out_of_memory(failure):
            return self._survive_starvation([], failure)
        rows = self._rows
        self._log.warning("step_failed", rows=len(rows), error=type(failure).__name__)
        self._release_batch()
        if len(rows) == 1:
            return [rows[0].fail("engine_error", f"the model cannot go on with it: {failure}", retryable=False)]
        for row in rows:
            row.suspect = row.alone = True
        self._intake.put_back(rows)
        return []

    def _survive_starvation(self, reading: list[Row], failure: Exception) -> list[EngineEvent]:
        """Memory ran out: half of the rows, the youngest, wait until the others are done; none loses what it made."""
        live = sorted([*self._live(), *reading], key=lambda row: row.arrival)
        self._log.info("out_of_memory", rows=len(live))
        if not live:
            return []
        if len(live) == 1:
            live[0].starved += 1
            if live[0].starved >= MOST_STARVED:
                self._release()
                tokens = f"{len(live[0].context):,} tokens"
                message = (
                    f"not enough memory for {tokens}, even alone: {failure}; shorten the prompt or use a larger GPU"
                )
                return [live[0].fail("out_of_memory", message, retryable=True)]
        kept = live[: len(live) // 2]
        self._limit.lower(len(kept))
        if self._batch.intact and not self._batch.has_states:
            stays = set(map(id, kept)) - set(map(id, reading))
            leaving = [row for row in live if id(row) not in stays]
        else:
            leaving = live
        self._remove([row for row in leaving if row not in reading])
        self._intake.put_back(leaving)
        self._shrink_to_rows()
        free_memory()
        return []

    def _shrink_to_rows(self) -> None:
        """Free what rows that have left had, or everything, where moving the others takes more than there is."""
        if not self._rows:
            return
        try:
            self._batch.shrink(len(self._rows), self._batch.span.column_capacity)
        except RuntimeError as exc:
            if not is_out_of_memory(exc):
                raise
            self._intake.put_back(self._rows)
            self._release_batch()

    # Who computes

    def _live(self) -> list[Row]:
        return [*self._rows, *self._unread, *(row for job in self._long for row in job.rows)]

    def _remove(self, rows: list[Row]) -> None:
        gone = set(map(id, rows))
        if not gone:
            return
        self._unread = [row for row in self._unread if id(row) not in gone]
        self._long = deque(job for job in self._long if id(job.rows[0]) not in gone)
        slots = {slot for slot, row in enumerate(self._rows) if id(row) in gone}
        if len(slots) == len(self._rows):
            self._release_batch()
        elif slots:
            order = self._batch.leave(slots)
            self._rows = [self._rows[slot] for slot in order]
            self._tokens = self._tokens[order]
            self._sampler = None

    def _release_batch(self) -> None:
        self._rows = []
        self._tokens = self._tokens[:0]
        self._sampler = None
        self._batch.clear()

    def _release(self) -> None:
        self._unread = []
        self._long.clear()
        self._release_batch()

    def _synchronize(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
