"""What happens to a task, as it happens: one Redis stream a task, read by anyone who may see the task.

    worker ──EventWriter──► Redis stream bitinglip:events:{task id} ──EventReader──► handle.stream(), task follow

An event's id is `attempt-sequence`, and Redis refuses an id that is not greater than the last: the events of a worker
that lost its task never reach a reader. The stream is a view: it is bounded, it expires, and it may be wiped. Whoever
reads it falls back to the record, and a writer that cannot reach Redis drops events and goes on.

Decision: `queued` is never written to Redis. Every recorded task was queued, so the reader makes that event from the
record; a submission costs no round trip to Redis and needs no Redis.
"""
