"""Pictures: any text-to-image pipeline of diffusers, drawn in batches that stand still between steps.

    EngineRequest ──► request    payload checked against the model; inputs: a picture to start from is opened
                      job        its pictures wait
                      capacity   how many fit at once, learnt from those before
    each step()  ──►  drawing    one step of one batch: prompts, a step, a piece of decoding, a file
                      handover   the pipeline's call, in a thread that takes turns with the engine's
                      schedulers where it pauses
                      decoding   latents to pixels, some rows at a time
                      preview    latents to a thumbnail ──► Progress
                      files      encoded, hashed, with how it was made inside ──► Finished
    engine is the loop, loading brings the model, pipeline is what is known of it.

Decisions:

- The pipeline's own call, not a loop of ours over its parts: there are some hundred pipelines, each with its own
  encoders, packing and guidance. It runs in a thread that stands still between steps, so that text engines of the same
  process have their turn, and a cancel waits for one step.
- It pauses in its scheduler, which is the batch's own, and not in `callback_on_step_end`: PixArt, Kandinsky and others
  have no such callback, and the scheduler also marks the end of prompt encoding.
- Pictures share a batch when size, steps, guidance, scheduler and strength are equal; each has a generator of its own,
  on the CPU, so that it does not depend on its neighbours or the device.
- Of equal settings one batch is in flight. Those that come later wait for its end, as long as they take themselves, and
  share the next; begun at once they would each draw alone, several times as slowly.
- Batches of different settings take turns by time, not one after the other: half-way a batch holds only its latents and
  prompts, because just one computes at any time, and four steps need not wait for five hundred. Turns are counted in
  seconds for each request, so that a batch of many has more of them.
- One that decodes is not interrupted by another batch: some pipelines put the VAE, which all share, into a higher
  precision for it.
- A cancelled request ends at once; its rows are computed to the end with the others, but neither decoded nor written.
- Out of memory: half as many rows; then fewer rows decoded at once; then one row with attention in slices and decoding
  in tiles; then it fails, with a size that would fit.

Weaknesses: one step of one batch is the least that others wait for; of a large picture on a small device that is
seconds. A pipeline that pads prompts to the longest of a batch, without a mask, lets a long one touch its neighbours.
A seed repeats a picture in float32 only. Nothing here was run on more than one device.
"""

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.image.engine import DiffusionEngine
from bitinglip.engine.image.loading import load_pipeline


def load(config: EngineConfig) -> DiffusionEngine:
    """Load a pipeline from its folder; call it in the engine thread.

    Raises:
        InvalidModelError: If the folder cannot be used, or holds no text-to-image pipeline.
        ModelTooLargeError: If the model does not fit its budget.
        ConfigurationError: If the dtype is unknown.
    """
    return DiffusionEngine(config, load_pipeline(config))
