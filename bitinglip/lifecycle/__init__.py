"""The life of a task, a file a step. Every step is one transaction, or a few that may each be the last.

    submit   a request becomes a record, ready in its agent's queue
             (dispatcher.plan reserves it for a worker and rings that worker's doorbell)
    claim    the worker takes the lease: one attempt is now its own
    run      the engine works; events flow; the attempt ends
    finish   the outcome is recorded, if the attempt is still this worker's
    cancel   pending: at once; running: flagged, and stopped by its worker
    lease    a worker registers, renews, and hears what it missed
    rescue   a worker is gone; what it held is ready again

The lease on a task is `(task_id, attempt, worker_id)`, and every write names all three. A message from Celery is only a
doorbell: losing, repeating or delaying it changes nothing but the time.
"""
