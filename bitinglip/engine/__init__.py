"""Engines: what computes, in a process of its own under each worker.

    worker process                       engine process (its GPUs pinned by CUDA_VISIBLE_DEVICES)
    link.EngineLink ──commands──►  host.EngineHost: one thread: inbox ─► step() of each busy engine ─► events
                    ◄──events────     engines by (kind, model): text, fake, ...

    base      the Engine protocol and its events
    wire      how commands and events cross the pipe: JSON frames
    host      the engine process: loads, steps, puts off what there is no room for
    loaded    the engines it has loaded, within one memory budget; which one leaves
    link      the worker's end: requests in, events out; a process that ends has a successor
    process   one process as the worker sees it: its pipe, its last words, how it ended
    activity  what the process does now, in memory that both ends share
    limits    how long it may take over that before it is killed
    folder    a model folder: what it is, and why it is refused
              (weight_files, safetensors_header, model_config, custom_code, json_objects: its parts)
    fake      the `echo` kind: delays and failures on demand
    text/     continuous batching over any causal language model
    image/    pictures by any text-to-image pipeline of diffusers
    embedding/  a vector for each text, from any encoder or causal language model

Invariants: only the engine process imports torch; it ends when its worker ends, because the pipe closes. Whatever
becomes of it, every request that the link accepted gets exactly one `Finished`, `Failed` or `EngineLost`.

Blame: a process that crashes, or is killed because it is stuck, is lost by every request in it, and any of them may be
why. One that was killed for another reason, or had not begun to take requests, or died while it loaded a model, is
lost blamelessly: then the model is to blame, on that worker.

Decision: a process rather than a thread. A busy Python thread beside the engine's loop took it from 73 to 0.9 tokens a
second, a CUDA context that is poisoned ends its process, and a process can be killed: that is how limits are kept.
"""
