"""Train the image demo model from nothing: `python -m bitinglip.demo.images.train [FOLDER]`.

First the autoencoder, by pixels; then the text encoder and the denoiser together, on what the autoencoder makes of the
scenes. The figures of what it made are in the README.md that it writes beside it.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import Module
from torch.nn.functional import l1_loss, mse_loss
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from bitinglip.demo.images import image_model_folder
from bitinglip.demo.images.judge import judge
from bitinglip.demo.images.scenes import ALL_SCENES, COLOURS, PHRASINGS, SHAPES, SIZE, Image, Scene, draw, phrase

SEED = 20
THREADS = 2
AUTOENCODER_STEPS = 950
AUTOENCODER_ROWS = 24
DENOISER_STEPS = 3300
DENOISER_ROWS = 64
KEPT_PICTURES = 3_600
"""Pictures that the denoiser learns from; the autoencoder has encoded each once."""

PEAK_LEARNING_RATE = 2e-3
FINAL_LEARNING_RATE = 2e-5
WARMUP_STEPS = 100
MAX_GRADIENT_NORM = 1.0
KL_WEIGHT = 1e-5
UNPROMPTED_SHARE = 0.1
"""Rows that are learnt without their prompt: classifier-free guidance needs both."""

AVERAGE_DECAY = 0.998
TRAINING_TIMESTEPS = 1_000
PROMPT_TOKENS = 16
REPORT_EVERY_STEPS = 100
TESTED_PROMPTS = 100
TESTED_STEPS = 20
TESTED_GUIDANCE = 7.5
START, END, PAD, UNKNOWN = "<start>", "<end>", "<pad>", "<unknown>"


@dataclass(frozen=True)
class Score:
    """How many pictures are right.

    Attributes:
        colours: With both colours right.
        shapes: With the shape right.
        asked: Pictures in all.
    """

    colours: int
    shapes: int
    asked: int


def main() -> None:
    """Train, test, and write the folder that `DiffusionPipeline.from_pretrained` loads."""
    parser = argparse.ArgumentParser(description="Train the image demo model from nothing.")
    parser.add_argument("folder", nargs="?", type=Path, default=image_model_folder(), help="where to write the model")
    parser.add_argument("--shorten", type=float, default=1.0, help="part of all steps that is taken (1.0)")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    wall, cpu = time.monotonic(), time.process_time()
    pipeline = train_pipeline(arguments.shorten)
    wall_seconds, cpu_seconds = time.monotonic() - wall, time.process_time() - cpu

    # Half the bytes; it computes in whatever precision it is loaded in.
    pipeline.to(torch.float16).save_pretrained(arguments.folder)
    score = test_pipeline(load_pipeline(arguments.folder), seed=SEED)
    report = describe_pipeline(pipeline, score, wall_seconds=wall_seconds, cpu_seconds=cpu_seconds)
    (arguments.folder / "README.md").write_text(report, encoding="utf-8")
    print(report)  # noqa: T201 - the result of the command


def train_pipeline(shorten: float = 1.0) -> StableDiffusionPipeline:
    """Return the trained pipeline.

    Args:
        shorten: Part of all steps that is taken.
    """
    autoencoder = train_autoencoder(max(1, int(AUTOENCODER_STEPS * shorten)))
    tokenizer = build_tokenizer()
    text_encoder, denoiser = train_denoiser(autoencoder, tokenizer, max(1, int(DENOISER_STEPS * shorten)))
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_pipeline(folder: Path) -> Any:
    """Return the pipeline that a folder holds, in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_pipeline(pipeline: Any, *, seed: int) -> Score:
    """Return how many of `TESTED_PROMPTS` pictures are right, each drawn with a seed of its own."""
    scenes = Random(seed).sample(ALL_SCENES, TESTED_PROMPTS)  # noqa: S311 - repeatable, no secret
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(scenes))]
    drawn = pipeline(
        [scene.prompt for scene in scenes],
        num_inference_steps=TESTED_STEPS,
        guidance_scale=TESTED_GUIDANCE,
        generator=generators,
    ).images
    verdicts = [judge(np.asarray(picture)) for picture in drawn]
    return Score(
        colours=sum(verdict.has_colours_of(scene) for verdict, scene in zip(verdicts, scenes, strict=True)),
        shapes=sum(verdict.shape == scene.shape for verdict, scene in zip(verdicts, scenes, strict=True)),
        asked=len(scenes),
    )


# The autoencoder


def train_autoencoder(steps: int) -> AutoencoderKL:
    """Return an autoencoder of the scenes, its latents scaled to one."""
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        # As many groups as channels would take out of a plane what it says most: its colour.
        norm_num_groups=2,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    # A third faster on a CPU.
    autoencoder.to(memory_format=torch.channels_last)
    rng = Random(SEED)  # noqa: S311 - repeatable training data, no secret
    for step, optimizer in _take_steps(steps, "autoencoder", autoencoder):
        pixels = _to_tensor([draw(rng.choice(ALL_SCENES), rng) for _ in range(AUTOENCODER_ROWS)])
        posterior = autoencoder.encode(pixels.to(memory_format=torch.channels_last)).latent_dist
        made = autoencoder.decode(posterior.mean).sample
        loss = l1_loss(made, pixels) + KL_WEIGHT * posterior.kl().mean() / pixels[0].numel()
        _learn(step, loss, optimizer)
    autoencoder.to(memory_format=torch.contiguous_format)
    autoencoder.requires_grad_(requires_grad=False)
    with torch.inference_mode():
        latents = autoencoder.encode(_to_tensor([draw(scene, rng) for scene in ALL_SCENES])).latent_dist.mean
    autoencoder.register_to_config(scaling_factor=1 / latents.std().item())
    return autoencoder


# The text encoder and the denoiser


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words that the scenes' prompts are made of; any other word is unknown."""
    words = {word for form in PHRASINGS for word in form.split() if not word.startswith("{")}
    vocabulary = [PAD, UNKNOWN, START, END, *sorted(words | set(COLOURS) | set(SHAPES))]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, numbers[START]), (END, numbers[END])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=PROMPT_TOKENS,
    )


def make_scheduler() -> DDIMScheduler:
    """Return the scheduler that the model is trained and shipped with."""
    return DDIMScheduler(
        num_train_timesteps=TRAINING_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def train_denoiser(
    autoencoder: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, steps: int
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Return the text encoder and the denoiser, averaged over the last steps."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    denoiser = UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = make_scheduler()
    averages = [torch.optim.swa_utils.AveragedModel(part, multi_avg_fn=_average()) for part in (text_encoder, denoiser)]
    rows = _latent_rows(autoencoder, tokenizer)
    for step, optimizer in _take_steps(steps, "denoiser", text_encoder, denoiser):
        latents, ids = next(rows)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, TRAINING_TIMESTEPS, (len(latents),))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps)
        made = denoiser(noisy, timesteps, text_encoder(ids).last_hidden_state).sample
        _learn(step, mse_loss(made, target), optimizer)
        for average, part in zip(averages, (text_encoder, denoiser), strict=True):
            average.update_parameters(part)
    for average, part in zip(averages, (text_encoder, denoiser), strict=True):
        part.load_state_dict(average.module.state_dict())
    return text_encoder, denoiser


def _latent_rows(
    autoencoder: AutoencoderKL, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (latents, ids) without end: float32[rows, 4, SIZE / 8, SIZE / 8] and int64[rows, PROMPT_TOKENS]."""
    rng = Random(SEED + 1)  # noqa: S311 - repeatable training data, no secret
    scenes = [ALL_SCENES[number % len(ALL_SCENES)] for number in range(KEPT_PICTURES)]
    latents = []
    with torch.inference_mode():
        for start in range(0, len(scenes), DENOISER_ROWS):
            pixels = _to_tensor([draw(scene, rng) for scene in scenes[start : start + DENOISER_ROWS]])
            latents.append(autoencoder.encode(pixels).latent_dist.mean * autoencoder.config["scaling_factor"])
    kept = torch.cat(latents).clone()
    while True:
        chosen = torch.randint(0, len(scenes), (DENOISER_ROWS,))
        prompts = [_prompt_or_none(scenes[number], rng) for number in chosen.tolist()]
        ids = tokenizer(prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt")
        yield kept[chosen], ids["input_ids"]


def _prompt_or_none(scene: Scene, rng: Random) -> str:
    return "" if rng.random() < UNPROMPTED_SHARE else phrase(scene, rng)


def _average() -> Any:
    return torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY)  # type: ignore[no-untyped-call]


# Both


def _take_steps(steps: int, name: str, *parts: Module) -> Iterator[tuple[int, torch.optim.Optimizer]]:
    """Yield each step's number with the optimizer, at its learning rate; the parts learn meanwhile."""
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LEARNING_RATE, weight_decay=0.01, fused=True)
    for part in parts:
        part.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        if step % REPORT_EVERY_STEPS == 0:
            print(f"{name}: step {step} of {steps}", flush=True)  # noqa: T201 - progress
        yield step, optimizer
    for part in parts:
        part.train(mode=False)


def _learn(step: int, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()
    if step % REPORT_EVERY_STEPS == 0:
        print(f"  loss {loss.item():.4f}", flush=True)  # noqa: T201 - progress


def _learning_rate(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL_LEARNING_RATE + (PEAK_LEARNING_RATE - FINAL_LEARNING_RATE) * (1 + math.cos(math.pi * progress)) / 2


def _to_tensor(pictures: list[Image]) -> torch.Tensor:
    """Return pixels as float32[rows, 3, height, width], -1 to 1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def describe_pipeline(
    pipeline: StableDiffusionPipeline, score: Score, *, wall_seconds: float, cpu_seconds: float
) -> str:
    """Return the model's README: how it was made and how right it is."""
    parts = {"autoencoder": pipeline.vae, "text encoder": pipeline.text_encoder, "denoiser": pipeline.unet}
    sizes = "\n".join(f"| {name} | {part.num_parameters():,} |" for name, part in parts.items())
    return f"""\
# The image demo model

A Stable Diffusion pipeline for pictures of {SIZE} x {SIZE} pixels, made from nothing by
`python -m bitinglip.demo.images.train` with seed {SEED}, stored in fp16. It draws a
{", ".join(SHAPES[:-1])} or {SHAPES[-1]}, in {", ".join(list(COLOURS)[:-1])} or {list(COLOURS)[-1]}, on
another of these colours; it saw no picture but those that `bitinglip/demo/images/scenes.py` draws.

| part | parameters |
|---|---|
{sizes}

Training took {cpu_seconds:,.0f} CPU seconds on {THREADS} threads, {wall_seconds:,.0f} s on the clock.

| {score.asked} prompts, {TESTED_STEPS} steps, guidance {TESTED_GUIDANCE:g} | right |
|---|---|
| both colours | {score.colours} |
| shape | {score.shapes} |
"""


if __name__ == "__main__":
    main()
