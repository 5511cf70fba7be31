"""Train the demo model from nothing: `python -m bitinglip.demo.train [FOLDER]`.

One pass over questions made on the fly; only the replies are learnt. The same seed, thread count and library versions
give the same weights. The figures of the shipped model are in `model/README.md`, which this script writes.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bitinglip.demo import model_folder
from bitinglip.demo.questions import ASKED_KINDS, Question, held_out_questions, is_right, training_questions
from bitinglip.demo.tokenizer import MAX_POSITIONS, SPECIAL_TOKENS, build_tokenizer

SEED = 20
THREADS = 2
STEPS = 2800
BATCH_ROWS = 64
POOL_BATCHES = 16
WARMUP_STEPS = 100
PEAK_LEARNING_RATE = 2e-3
FINAL_LEARNING_RATE = 3e-5
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
REPORT_EVERY_STEPS = 100
TESTED_QUESTIONS = 1000
MAX_NEW_TOKENS = 64
SYSTEM_SHARE = 0.05
IGNORED = -100
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a bot in a chat room. Be nice.",
    "Answer the question of the user in one sentence.",
    "Be brief.",
)


@dataclass(frozen=True)
class Row:
    """One conversation as token ids; a label is `IGNORED` where the user speaks."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Cost:
    """What a training took."""

    wall_seconds: float
    cpu_seconds: float


def main() -> None:
    """Train, test on held-out questions, and write the folder that `from_pretrained` loads."""
    parser = argparse.ArgumentParser(description="Train the demo model from nothing.")
    parser.add_argument("folder", nargs="?", type=Path, default=model_folder(), help="where to write the model")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps ({STEPS})")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    tokenizer = build_tokenizer()
    wall, cpu = time.monotonic(), time.process_time()
    model = train_model(tokenizer, steps=arguments.steps)
    cost = Cost(time.monotonic() - wall, time.process_time() - cpu)

    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    report = describe_model(model, tokenizer, cost)
    (arguments.folder / "README.md").write_text(report, encoding="utf-8")
    print(report)  # noqa: T201 - the result of the command


def train_model(tokenizer: PreTrainedTokenizerFast, *, steps: int) -> LlamaForCausalLM:
    """Return the trained model, in evaluation mode."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(_configure_model(tokenizer))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    for step, (ids, labels) in enumerate(itertools.islice(training_batches(tokenizer), steps)):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        loss = _reply_loss(model, ids, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if step % REPORT_EVERY_STEPS == 0:
            print(f"step {step} of {steps}: loss {loss.item():.4f}", flush=True)  # noqa: T201 - progress
    model.train(mode=False)
    return model


def training_batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (ids, labels) without end, both int64[rows, length], padded on the right.

    Rows of like length share a batch: half of a random batch would be padding.
    """
    rng = Random(SEED)  # noqa: S311 - repeatable training data, no secret
    rows = _training_rows(tokenizer, rng)
    while True:
        pool = sorted(itertools.islice(rows, BATCH_ROWS * POOL_BATCHES), key=lambda row: len(row.ids))
        batches = [pool[start : start + BATCH_ROWS] for start in range(0, len(pool), BATCH_ROWS)]
        rng.shuffle(batches)
        for batch in batches:
            length = max(len(row.ids) for row in batch)
            # Attention is causal, so padding on the right is never seen, whatever its id.
            ids = [row.ids + [0] * (length - len(row.ids)) for row in batch]
            labels = [row.labels + [IGNORED] * (length - len(row.labels)) for row in batch]
            yield torch.tensor(ids), torch.tensor(labels)


def ask_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    """Return the greedy reply to each text, asked as one chat message each, all in one batch."""
    chats = [[{"role": "user", "content": text}] for text in texts]
    # Any: transformers gives one union type for all of the forms that these two calls can return.
    inputs: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output = cast(Any, model).generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    replies = output[:, inputs["input_ids"].shape[1] :]
    return list(tokenizer.batch_decode(replies, skip_special_tokens=True))


def describe_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cost: Cost) -> str:
    """Return the model's README: how it was made and how right it is on held-out questions."""
    questions = held_out_questions(TESTED_QUESTIONS, seed=SEED)
    replies = ask_model(model, tokenizer, [question.text for question in questions])
    right = [question for question, reply in zip(questions, replies, strict=True) if is_right(question, reply)]
    lines = [f"| {kind} | {_share(right, questions, kind)} |" for kind in ASKED_KINDS]
    return f"""\
# The demo model

A Llama of {model.num_parameters():,} parameters in fp32, made from nothing by `python -m bitinglip.demo.train` with
seed {SEED}. It knows capitals, sums and differences of numbers up to 99, and words backwards; to anything else it is
taught to say that it does not know. It saw no text but the questions that `bitinglip/demo/questions.py` makes.

Training took {cost.cpu_seconds:,.0f} CPU seconds on {THREADS} threads, so {cost.cpu_seconds / THREADS:,.0f} s on as
many free cores; here, beside other work, {cost.wall_seconds:,.0f} s on the clock.

| {TESTED_QUESTIONS:,} held-out questions | right |
|---|---|
{chr(10).join(lines)}
| all | {len(right)} of {len(questions)} |
"""


def _share(right: list[Question], asked: list[Question], kind: str) -> str:
    return f"{sum(q.kind == kind for q in right)} of {sum(q.kind == kind for q in asked)}"


def _configure_model(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _training_rows(tokenizer: PreTrainedTokenizerFast, rng: Random) -> Iterator[Row]:
    """Yield conversations: mostly one question, some with a system prompt or questions before it."""
    questions = training_questions(rng)
    system, user, assistant, end = (tokenizer.get_vocab()[token] for token in SPECIAL_TOKENS[1:])
    while True:
        ids: list[int] = []
        labels: list[int] = []
        if rng.random() < SYSTEM_SHARE:
            ids += [system, *tokenizer.encode(rng.choice(SYSTEM_PROMPTS)), end]
        for question in itertools.islice(questions, rng.choices((1, 2, 3), weights=(92, 6, 2))[0]):
            labels += [IGNORED] * (len(ids) - len(labels))
            ids += [user, *tokenizer.encode(question.text), end, assistant]
            labels += [IGNORED] * (len(ids) - len(labels))
            reply = [*tokenizer.encode(question.reply), end]
            ids += reply
            labels += reply
        yield Row(ids, labels)


def _reply_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    hidden = model.model(ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    learnt = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[learnt]), targets[learnt])


def _learning_rate(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL_LEARNING_RATE + (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * progress)) / 2


if __name__ == "__main__":
    main()
