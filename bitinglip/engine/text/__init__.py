"""Text generation: continuous batching over `model.forward`, for any causal language model of transformers."""

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.text.engine import TextEngine
from bitinglip.engine.text.loading import load_model


def load(config: EngineConfig) -> TextEngine:
    """Load a model from its folder; call it in the engine thread.

    Raises:
        InvalidModelError: If the folder cannot be used.
        ConfigurationError: If the model does not fit its budget, or the dtype is unknown.
    """
    return TextEngine(config, load_model(config))
