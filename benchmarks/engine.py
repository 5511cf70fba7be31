"""How fast the text engine is, beside transformers' own ways to run the same model, in one process.

A Llama of 135M parameters (hidden 576, 30 layers) with random weights answers 16 requests of 64 new tokens three ways:
the engine, transformers' continuous batching (its manager kept warm), and one left-padded `generate` batch, which knows
all requests beforehand. They take turns, so that whatever else the machine does hits all three. Then one request
arrives every 0.3 s, and the mean time to its first text is taken. Ratios are medians over the rounds; above 1 the
engine is faster.

    python benchmarks/engine.py --json
    python benchmarks/engine.py --dtype bfloat16 --threads 2 --rounds 5
"""

import sys

# This folder's queue.py would hide Python's own, which torch imports.
sys.path[:] = [folder for folder in sys.path if not folder.endswith("benchmarks")]

import argparse
import gc
import json
import random
import statistics
import string
from collections.abc import Callable
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bitinglip.engine.base import EngineConfig, EngineRequest, Finished, Text
from bitinglip.engine.text.engine import TextEngine
from bitinglip.engine.text.loading import LoadedModel

REQUESTS = 16
NEW_TOKENS = 64
ARRIVAL_SECONDS = 0.3
VOCABULARY = 49_152
RESULTS = Path(__file__).parent / "results" / "engine.json"


def main() -> None:
    """Run, print, and keep the result where `--save` is given."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    result = measure(options)
    if options.save:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:32} {value}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--save", action="store_true", help=f"also write {RESULTS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return every number, the settings included."""
    model = make_model(getattr(torch, options.dtype))
    rival = make_model(getattr(torch, options.dtype))
    tokenizer = make_tokenizer()
    prompts = make_prompts()
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    engine = TextEngine(
        EngineConfig(model="benchmark", folder=None, max_rows=REQUESTS), LoadedModel(model, tokenizer, frozenset())
    )
    ways: dict[str, Callable[[], int]] = {
        "own": lambda: run_own(engine, prompts),
        "continuous_batching": lambda: run_continuous_batching(rival, ids),
        "generate": lambda: run_generate(model, ids),
    }
    for run in ways.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds):
        for name, run in ways.items():
            began = perf_counter()
            tokens = run()
            rates[name].append(tokens / (perf_counter() - began))
            print(f"round {number + 1}: {name} {rates[name][-1]:.0f} tokens/s", file=sys.stderr)
    first_token_seconds = arrive_one_by_one(engine, prompts)
    return {
        "tokens_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio_vs_continuous_batching": median_ratio(rates["own"], rates["continuous_batching"]),
        "ratio_vs_generate": median_ratio(rates["own"], rates["generate"]),
        "ttft_mean_s": round(statistics.mean(first_token_seconds), 3),
        "ttft_max_s": round(max(first_token_seconds), 3),
        "requests": REQUESTS,
        "new_tokens": NEW_TOKENS,
        "dtype": options.dtype,
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
    }


def run_own(engine: TextEngine, prompts: list[str]) -> int:
    """Every request at once through the engine."""
    for number, prompt in enumerate(prompts):
        engine.add(make_request(number, prompt))
    made = 0
    while engine.busy:
        made += sum(event.usage.completion_tokens for event in engine.step() if isinstance(event, Finished))
    check_count(made)
    return made


def run_continuous_batching(model: Any, ids: list[list[int]]) -> int:
    """Every request at once through transformers' manager, which stays up between rounds."""
    outputs = model.generate_batch(ids, max_new_tokens=NEW_TOKENS, persistent_manager=True)
    made = sum(len(output.generated_tokens) for output in outputs.values())
    check_count(made)
    return made


def run_generate(model: Any, ids: list[list[int]]) -> int:
    """Every request in one batch, padded on the left."""
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    made = model.generate(padded, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
    check_count(made[:, width:].numel())
    return int(made[:, width:].numel())


def arrive_one_by_one(engine: TextEngine, prompts: list[str]) -> list[float]:
    """Return the seconds to the first text of each request, one arriving every 0.3 s."""
    began = perf_counter()
    due = [began + number * ARRIVAL_SECONDS for number in range(len(prompts))]
    first: dict[str, float] = {}
    added = 0
    while added < len(prompts) or engine.busy:
        while added < len(prompts) and perf_counter() >= due[added]:
            engine.add(make_request(added, prompts[added]))
            added += 1
        for event in engine.step():
            if isinstance(event, Text):
                first.setdefault(event.request_id, perf_counter())
    return [first[str(number)] - due[number] for number in range(len(prompts))]


def check_count(made: int) -> None:
    """Refuse a comparison of unequal work."""
    if made != REQUESTS * NEW_TOKENS:
        message = f"{made} tokens made instead of {REQUESTS * NEW_TOKENS}"
        raise RuntimeError(message)


def make_request(number: int, prompt: str) -> EngineRequest:
    """A greedy request."""
    return EngineRequest(str(number), {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0})


def median_ratio(mine: list[float], theirs: list[float]) -> float:
    """The median over the rounds, each against its own round."""
    return round(statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), 3)


def make_model(dtype: torch.dtype) -> Any:
    """The 135M Llama shape; random weights, and no token that ends a text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    gc.collect()
    return LlamaForCausalLM(config).to(dtype).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Reads one token a byte; each of its tokens is whole text, so that the first one shows as soon as it is made."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"]
    words = ("".join(word) for word in product(string.ascii_letters, repeat=3))
    names = [*letters, *(next(words) for _ in range(VOCABULARY - len(letters)))]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def make_prompts() -> list[str]:
    """Prompts of 8 to 48 tokens, the same in each run."""
    source = random.Random(0)
    return ["".join(source.choices("abcdefgh ", k=source.randint(8, 48))) for _ in range(REQUESTS)]


if __name__ == "__main__":
    main()
