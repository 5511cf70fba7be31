"""How fast the image engine is, beside bare diffusers running the same tiny pipeline, in one process.

A Stable Diffusion of a few thousand parameters with random weights draws 8 prompts in 20 steps: one by one and as one
batch, by the engine and by the pipeline itself. They take turns, so that whatever else the machine does hits all. On so
small a model what a step costs besides arithmetic shows most: it is the worst case for the engine's own share, and the
best for batching. `--model` takes another folder.

Then: how far a batched row is from the same request alone, how many steps a cancel waits for, and the seconds from one
token of a text to the next in the same process, with and without pictures drawn beside it.

    python benchmarks/images.py --json
    python benchmarks/images.py --model bitinglip/demo/images/model --rounds 3
"""

import os
import sys

# This folder's queue.py would hide Python's own, which torch imports.
sys.path[:] = [folder for folder in sys.path if not folder.endswith("benchmarks")]
# As an engine process has it: threads that spin while they wait take the cores from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import contextlib
import json
import queue
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from bitinglip.demo import model_folder
from bitinglip.engine import wire
from bitinglip.engine.activity import ActivityBoard, open_board_file
from bitinglip.engine.base import EngineConfig, EngineRequest, Failed, Finished, Progress, Text
from bitinglip.engine.host import EngineHost
from bitinglip.engine.image.engine import DiffusionEngine
from bitinglip.engine.image.loading import load_pipeline
from bitinglip.engine.image.pipeline import Drawn, ImagePipeline, Settings

PROMPTS = [f"picture number {number} of eight" for number in range(8)]
STEPS = 20
PROMPT_TOKENS = 32
VOCABULARY = 260
TEXT_TOKENS = 200
RESULTS = Path(__file__).parent / "results" / "images.json"


def main() -> None:
    """Run, print, and keep the result where `--save` is given."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
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
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=None, help="a pipeline's folder; default: one made here")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return every number, the settings included."""
    model = options.model or make_pipeline(folder / "model")
    pipeline = RecordingPipeline("benchmark", load_pipeline(EngineConfig(model="benchmark", folder=model)).base)
    engine = DiffusionEngine(EngineConfig(model="benchmark", folder=None), pipeline)
    spool = folder / "spool"
    ways: dict[str, Callable[[], None]] = {
        "engine_batch": lambda: run_engine(engine, spool, PROMPTS),
        "bare_batch": lambda: run_bare(pipeline.base, spool, PROMPTS),
        "engine_one_by_one": lambda: [run_engine(engine, spool, [prompt]) for prompt in PROMPTS] and None,
        "bare_one_by_one": lambda: [run_bare(pipeline.base, spool, [prompt]) for prompt in PROMPTS] and None,
    }
    seconds = take_turns(ways, options.rounds)
    run_engine(engine, spool, PROMPTS)
    together = dict(pipeline.pixels)
    for prompt in PROMPTS:
        run_engine(engine, spool, [prompt])
    difference = max(float(abs(together[prompt] - pipeline.pixels[prompt]).max()) for prompt in PROMPTS)
    return {
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "batch_speedup": median_ratio(seconds["engine_one_by_one"], seconds["engine_batch"]),
        "overhead_batch": round(median_ratio(seconds["engine_batch"], seconds["bare_batch"]) - 1, 4),
        "overhead_one_by_one": round(median_ratio(seconds["engine_one_by_one"], seconds["bare_one_by_one"]) - 1, 4),
        "row_difference_max": difference,
        "cancel_steps_max": max(count_cancel_steps(engine, spool, after) for after in range(1, STEPS, 4)),
        "token_seconds": measure_tokens(model, folder),
        "pictures": len(PROMPTS),
        "steps": STEPS,
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
    }


class RecordingPipeline(ImagePipeline):
    """Remembers what it drew, by prompt, before it is rounded to bytes."""

    def __init__(self, name: str, pipe: Any) -> None:
        super().__init__(name, pipe)
        self.pixels: dict[str, Any] = {}

    def call(self, pipe: Any, settings: Settings, pictures: Any) -> Drawn:
        """Draw, and remember."""
        drawn = super().call(pipe, settings, pictures)
        self.pixels |= {picture.prompt: pixels for picture, pixels in zip(pictures, drawn.pixels, strict=True)}
        return drawn


def take_turns(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, rounds):
        for name, run in ways.items():
            began = perf_counter()
            run()
            if number >= 0:
                seconds[name].append(perf_counter() - began)
        if number >= 0:
            shown = ", ".join(f"{name} {values[-1]:.3f} s" for name, values in seconds.items())
            print(f"round {number + 1}: {shown}", file=sys.stderr)
    return seconds


def run_engine(engine: DiffusionEngine, spool: Path, prompts: list[str]) -> None:
    """Draw and write prompts, all known at once, through the engine."""
    for number, prompt in enumerate(prompts):
        engine.add(make_request(str(number), spool, prompt))
    ended = 0
    while engine.busy:
        ended += sum(isinstance(event, Finished) for event in engine.step())
    if ended != len(prompts):
        message = f"{ended} pictures drawn instead of {len(prompts)}"
        raise RuntimeError(message)


def run_bare(pipe: Any, spool: Path, prompts: list[str]) -> None:
    """Draw and write prompts in one call of the pipeline."""
    generators = [torch.Generator().manual_seed(PROMPTS.index(prompt)) for prompt in prompts]
    with torch.inference_mode():
        images = pipe(prompts, num_inference_steps=STEPS, generator=generators).images
    spool.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        image.save(spool / f"bare{number}.png", compress_level=3)


def count_cancel_steps(engine: DiffusionEngine, spool: Path, after: int) -> int:
    """Return the steps of the engine until a request that is cancelled in the middle of a batch has ended."""
    for number, prompt in enumerate(PROMPTS):
        engine.add(make_request(str(number), spool, prompt))
    for _ in range(after):
        engine.step()
    engine.cancel("3")
    waited = 1
    while not any(isinstance(event, Failed) and event.request_id == "3" for event in engine.step()):
        waited += 1
    while engine.busy:
        engine.step()
    return waited


def measure_tokens(model: Path, folder: Path) -> dict[str, float]:
    """Return the seconds between two tokens, alone and beside pictures, and the longest step of those."""
    with open_host() as (host, sent):
        start_text(host, "warm")
        follow(host, sent, "warm")
        start_text(host, "alone")
        alone, _ = follow(host, sent, "alone")
        payload = {"prompt": "a picture", "steps": 500, "width": 32, "height": 32}
        host.inbox.put(wire.Run("picture", "image", "tiny", str(model), payload, spool=str(folder / "host")))
        follow_until_progress(host, sent)
        start_text(host, "beside")
        beside, steps = follow(host, sent, "beside")
        host.inbox.put(wire.Cancel("picture"))
        host.take_turn()
    return {
        "alone_p50": round(statistics.median(alone), 5),
        "beside_pictures_p50": round(statistics.median(beside), 5),
        "beside_pictures_max": round(max(beside), 5),
        "picture_steps_meanwhile": steps,
    }


@contextlib.contextmanager
def open_host() -> Iterator[tuple[EngineHost, "queue.SimpleQueue[Any]"]]:
    """An engine process's loop in this thread, and what it sends."""
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(messages: list[Any]) -> None:
        for message in messages:
            sent.put(message)

    with open_board_file() as file:
        yield EngineHost(send, ActivityBoard(file.fileno()), devices=("cpu",), slots=4, memory_bytes=None), sent


def start_text(host: EngineHost, name: str) -> None:
    """Ask the demo model for a long text."""
    payload = {"prompt": "What is 1 plus 1?", "max_tokens": TEXT_TOKENS, "temperature": 2.0, "seed": 1, "raw": True}
    host.inbox.put(wire.Run(name, "text", "demo", str(model_folder()), payload))


def follow(host: EngineHost, sent: "queue.SimpleQueue[Any]", name: str) -> tuple[list[float], int]:
    """Return the seconds between the pieces of a text, and the steps that pictures took meanwhile."""
    seconds: list[float] = []
    steps = 0
    last: float | None = None
    while True:
        host.take_turn()
        while not sent.empty():
            message = sent.get()
            steps += isinstance(message, Progress)
            if isinstance(message, Text) and message.request_id == name:
                now = perf_counter()
                if last is not None:
                    seconds.append(now - last)
                last = now
            if isinstance(message, Finished | Failed) and message.request_id == name:
                return seconds, steps


def follow_until_progress(host: EngineHost, sent: "queue.SimpleQueue[Any]") -> None:
    """Return when pictures are under way."""
    while True:
        host.take_turn()
        while not sent.empty():
            if isinstance(sent.get(), Progress):
                return


def make_request(name: str, spool: Path, prompt: str) -> EngineRequest:
    """A picture of the pipeline's own size."""
    payload = {"prompt": prompt, "steps": STEPS, "seed": PROMPTS.index(prompt)}
    return EngineRequest(name, payload, spool=str(spool / name))


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over the rounds, each against its own round."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def make_pipeline(folder: Path) -> Path:
    """A Stable Diffusion that draws pictures of 32 x 32, with random weights."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(find_letters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", model_max_length=PROMPT_TOKENS
    )
    encoder = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=PROMPT_TOKENS,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(encoder),
        tokenizer=fast,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def find_letters() -> list[str]:
    """What bytes are written as in a tokenizer."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


if __name__ == "__main__":
    main()
