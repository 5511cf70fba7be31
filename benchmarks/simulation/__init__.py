"""Simulate queues and GPUs around the real planner, in no real time.

    traces ─► cluster ─► record ─► bounds, picture
                 │ ▲
                 ▼ │
       bitinglip.dispatcher.plan, or a rival of `rivals`

    traces    who asks for what and when: made from a seed, or read from a file
    cluster   what the store, the dispatcher and the workers do between two plans
    record    what happened: service, waits, loads
    rivals    FIFO, and one batch a model, for comparison
    bounds    what must hold, with its proof, and the suite's numbers
    picture   a record drawn

Simplification: the slots of a GPU do not slow each other down. A round takes no time, nor does a doorbell.
"""
