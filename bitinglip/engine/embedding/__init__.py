"""Embeddings: a vector for each text, from any encoder or causal language model of transformers.

    EngineRequest ──► request   payload checked; takes the vectors as they come
                      reading   texts tokenised, cut at the model's context
                      batching  the texts of all requests, sorted by length: a batch is a run of neighbours
    each step()  ──►  encoder   one forward pass, pooled in float32 over real tokens only
                      request   cut to `dimensions`, normalised ──► Progress ... Finished
    engine is the loop, loading brings the model and its pooling, numbers makes JSON of float32.

Decisions:

- Rows are padded on the right, whatever the tokenizer says: positions then need no correction, and in a causal model
  padding comes after every real token.
- How a model pools is what its folder says in the way of sentence-transformers (mean, first or last token); mean where
  it says nothing. A folder that names other modules (a dense layer behind the pooling) is refused: leaving one out
  would give vectors that look right and are not.
- Whether padding keeps out of a row is measured at load with eight tokens. Where it does not (FNet mixes all columns),
  only texts of equal length share a batch.
- Texts are cut by slicing token ids, never by the tokenizer's own truncation, which is a setting of the shared object.
- Vectors are lists of numbers in the record, not packed bytes: SQL and `--json` can read them. What JSON of them costs
  a worker bounds how many a task may have (`request.MAX_FLOATS`).

Weaknesses: working memory is estimated from the model's shape, not measured; where it was underestimated a batch runs
out of memory, and batches are halved. A text is read in one pass, so a very long one holds the others up.
"""

from bitinglip.engine.base import EngineConfig
from bitinglip.engine.embedding.engine import EmbeddingEngine
from bitinglip.engine.embedding.loading import load_encoder


def load(config: EngineConfig) -> EmbeddingEngine:
    """Load a model from its folder; call it in the engine thread.

    Raises:
        InvalidModelError: If the folder cannot be used, or the model reads no text.
        ModelTooLargeError: If the model does not fit its budget.
        ConfigurationError: If the dtype is unknown.
    """
    return EmbeddingEngine(config, load_encoder(config))
