"""Tiny pipelines of different families with random weights, saved as users have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.engine.tiny_models import make_tokenizer

PROMPT_TOKENS = 32
VOCABULARY = 272
PAD_ID = 258


def make_stable_diffusion(folder: Path) -> None:
    """A UNet on 16 x 16 latents; pictures of 32 x 32."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    StableDiffusionPipeline(
        vae=_make_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=_make_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def make_stable_diffusion_xl(folder: Path) -> None:
    """Two encoders, and a VAE that is put into float32 to decode."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        cross_attention_dim=32,
        norm_num_groups=4,
    )
    StableDiffusionXLPipeline(
        vae=_make_vae(4),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_make_tokenizer(),
        tokenizer_2=_make_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)


def make_pixart(folder: Path) -> None:
    """A diffusion transformer with a T5 encoder and a pipeline without `callback_on_step_end`."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        use_additional_conditions=False,
    )
    PixArtSigmaPipeline(
        tokenizer=_make_tokenizer(),
        text_encoder=_make_t5(),
        vae=_make_vae(4, blocks=4),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder)


def make_flux(folder: Path) -> None:
    """A flow-matching transformer on packed latents, two encoders."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=CLIPTextModel(_clip_config()),
        tokenizer=_make_tokenizer(),
        text_encoder_2=_make_t5(),
        tokenizer_2=_make_tokenizer(),
        vae=_make_vae(4),
        transformer=transformer,
    )
    pipe.save_pretrained(folder)


def make_stable_diffusion_3(folder: Path) -> None:
    """A flow-matching transformer that knows 24 x 24 places, and no T5."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=24,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_make_vae(4),
        text_encoder=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=_make_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer_2=_make_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "stable_diffusion": make_stable_diffusion,
    "stable_diffusion_xl": make_stable_diffusion_xl,
    "pixart": make_pixart,
    "flux": make_flux,
    "stable_diffusion_3": make_stable_diffusion_3,
}


def _make_vae(channels: int, blocks: int = 2) -> Any:
    return AutoencoderKL(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        shift_factor=0.0,
    )


def _make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = PROMPT_TOKENS
    return tokenizer


def _clip_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=PROMPT_TOKENS,
        projection_dim=16,
        eos_token_id=256,
        bos_token_id=257,
        pad_token_id=PAD_ID,
    )


def _make_t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, pad_token_id=PAD_ID)
    )
