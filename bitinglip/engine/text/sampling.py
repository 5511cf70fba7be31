"""From logits to one token a row.

Rows that only want the most likely token, and most do, cost one `max` for all of them and one copy to the host. The
others are sampled together; only penalties, schemas and seeds cost something per row. The order is that of
transformers: repetition penalty, schema, temperature, top_k, top_p.

A seeded row draws its noise from a generator of its own, as many numbers at each token, so its text does not depend on
the rows beside it, as far as the logits do not (float32).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitinglip.domain.payloads import TextPayload
from bitinglip.engine.text.request import TextRequest
from bitinglip.engine.text.structured import SchemaMatcher


@dataclass(slots=True)
class Choice:
    """How one row chooses, and what it has to remember for that.

    Attributes:
        generator: Its own where the request has a seed.
        seen: bool[vocabulary]: tokens that the repetition penalty hits; None without one.
        matcher: Where its JSON document stands; None without a schema.
        reports: What was reported of each token, where logprobs are asked for.
    """

    payload: TextPayload
    generator: torch.Generator | None = None
    seen: Tensor | None = None
    matcher: SchemaMatcher | None = None
    reports: list[tuple[float, list[tuple[int, float]]]] = field(default_factory=list)

    def remember(self, token_id: int) -> bool:
        """Take note of the token made; return whether the schema's document is complete."""
        if self.seen is not None:
            self.seen[token_id] = True
        return self.matcher is not None and self.matcher.push(token_id)


def make_choice(request: TextRequest, vocabulary: int, device: torch.device, matcher: SchemaMatcher | None) -> Choice:
    """Return the state of a row that stands behind the tokens earlier attempts have made."""
    payload = request.payload
    choice = Choice(payload, matcher=matcher)
    if payload.repetition_penalty != 1:
        choice.seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        choice.seen[torch.tensor(request.prompt_ids, device=device)] = True
    if payload.seed is not None and payload.temperature > 0:
        choice.generator = torch.Generator(device=device)
        choice.generator.manual_seed(payload.seed)
        noise = torch.empty(vocabulary, device=device)
        for _ in request.made_ids:
            noise.exponential_(generator=choice.generator)
    for token_id in request.made_ids:
        choice.remember(token_id)
    return choice


class Sampler:
    """Chooses for a fixed set of rows; made anew when rows join or leave.

    Args:
        choices: One a row, in the order of the logits.
        device: Where the logits are.
    """

    def __init__(self, choices: Sequence[Choice], device: torch.device) -> None:
        self._choices = choices
        self._device = device
        self._shaped = [i for i, c in enumerate(choices) if c.seen is not None or c.matcher is not None]
        self._reported = [i for i, c in enumerate(choices) if c.payload.logprobs is not None]
        sampled = [i for i, c in enumerate(choices) if c.payload.temperature > 0]
        self._sampled = [choices[i] for i in sampled]
        self._generators = [c.generator for c in self._sampled if c.generator is not None]
        if not sampled:
            return
        payloads = [choice.payload for choice in self._sampled]
        self._rows = torch.tensor(sampled, device=device)
        self._temperature = torch.tensor([[p.temperature] for p in payloads], device=device)
        self._narrows = any(p.top_k > 0 or p.top_p < 1 for p in payloads)
        self._top_k = torch.tensor([[p.top_k or 2**31] for p in payloads], device=device)
        self._top_p = torch.tensor([[p.top_p] for p in payloads], device=device)

    def choose(self, logits: Tensor) -> tuple[Tensor, list[int | None]]:
        """Return the tokens on the device, [rows, 1], and on the host.

        A row whose logits are not finite gets None: the model has failed for it. Whatever is raised, the same call
        again gives the same tokens.

        Args:
            logits: float[rows, vocabulary].
        """
        states = [(generator, generator.get_state()) for generator in self._generators]
        try:
            return self._choose(logits)
        except BaseException:
            for generator, state in states:
                generator.set_state(state)
            raise

    def _choose(self, logits: Tensor) -> tuple[Tensor, list[int | None]]:
        raw = logits
        if self._shaped:
            logits = logits.float().clone()
            for index in self._shaped:
                _shape(logits[index], self._choices[index])
        best, tokens = logits.max(dim=-1)
        if self._sampled:
            tokens[self._rows] = self._sample(logits[self._rows].float())
        tokens = torch.where(best.isfinite(), tokens, -1)
        host: list[int | None] = [token if token >= 0 else None for token in tokens.tolist()]
        for index in self._reported:
            if (token := host[index]) is not None:
                choice = self._choices[index]
                choice.reports.append(_report(raw[index], token, choice.payload.logprobs or 0))
        return tokens.unsqueeze(1), host

    def _sample(self, logits: Tensor) -> Tensor:
        scaled = logits / self._temperature
        if self._narrows:
            scaled = _narrow(scaled, self._top_k, self._top_p)
        noise = torch.empty_like(scaled).exponential_()
        probabilities = scaled.softmax(dim=-1)
        for row, choice in enumerate(self._sampled):
            if choice.generator is not None:
                noise[row].exponential_(generator=choice.generator)
        # The largest of p / Exp(1) is a draw from p, without the host knowing.
        return probabilities.div_(noise).argmax(dim=-1)


def _shape(logits: Tensor, choice: Choice) -> None:
    if choice.seen is not None:
        penalty = choice.payload.repetition_penalty
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        logits.copy_(torch.where(choice.seen, penalised, logits))
    if choice.matcher is not None:
        logits.masked_fill_(~choice.matcher.allowed(logits.device), -torch.inf)


def _narrow(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the `top_k` most likely tokens, and of them the fewest that make up `top_p`; at least one."""
    ordered, origin = scaled.sort(dim=-1, descending=True)
    ranks = torch.arange(scaled.shape[-1], device=scaled.device)
    ordered = ordered.masked_fill(ranks >= top_k, -torch.inf)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    ordered = ordered.masked_fill((before >= top_p) & (ranks > 0), -torch.inf)
    return torch.empty_like(scaled).scatter_(-1, origin, ordered)


def _report(logits: Tensor, token_id: int, alternatives: int) -> tuple[float, list[tuple[int, float]]]:
    """The model's own distribution: before penalty, schema and temperature."""
    logprobs = logits.float().log_softmax(dim=-1)
    top: list[tuple[int, float]] = []
    if alternatives:
        values, ids = logprobs.topk(min(alternatives, logprobs.shape[-1]))
        top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return float(logprobs[token_id]), top
