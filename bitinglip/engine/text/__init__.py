"""Text generation: continuous batching over `model.forward`, for any causal language model of transformers.

    EngineRequest ──► request    payload checked, prompt tokenised
                      intake     waits in order of arrival
                      admission  memory reserved: rows x columns_for(longest)
                      prefill    prompt read: short ones together, long ones in chunks
                      batch      keys and values join the rectangle (layers: one model layer's share of it)
    each step()  ──►  forward    one token for every row
                      sampling   greedy rows in one max; the others together (structured: JSON schemas)
                      row        detokenise, stop, usage ──► Text ... Finished
    engine is the loop, loading brings the model, memory counts bytes.

Decisions:

- One left-padded batch over `model.forward`, not paged attention: it needs nothing from a model but what `generate`
  needs, so sliding windows, ALiBi, MLA, mixtures of experts, state-space and hybrid models work alike. transformers'
  own continuous batching has no seeds or stop strings per request, and one bad request ends its loop.
- What a model can do is measured at load with eight tokens (`forward.measure_traits`): whether prompts may be padded or
  read in chunks, and whether rows keep apart. Where they do not (RWKV, xLSTM and RecurrentGemma keep state outside the
  cache), the model is refused at load rather than answered wrongly.
- Memory is reserved for prompt and max_tokens at admission. Running out all the same (other processes) drops the
  youngest half of the rows; they go on later from what they had made, with no text sent twice.
- Who is to blame for a failed step is found by running its rows one at a time; only the culprit fails.
- Sampling defaults of the model's generation config are ignored; only its end tokens count.

Weaknesses: a rotary embedding that changes with the longest text in the batch (dynamic NTK, LongRoPE) lets a long row
touch its neighbours. A seed repeats a text in float32 only: lower precisions round differently in another batch. A
model that cannot be read in chunks (Mamba 1, Jamba) holds the others up while it reads a long prompt.
"""

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.text.engine import TextEngine
from bitinglip.engine.text.loading import load_model


def load(config: EngineConfig) -> TextEngine:
    """Load a model from its folder; call it in the engine thread.

    Raises:
        InvalidModelError: If the folder cannot be used, or the model's rows cannot decode together.
        ModelTooLargeError: If the model does not fit its budget.
        ConfigurationError: If the dtype is unknown.
    """
    return TextEngine(config, load_model(config))
