"""What happens to a task, as it happens: one Redis stream a task, read by anyone who may see the task.

    worker ──EventWriter──► Redis stream bitinglip:events:{task id} ──EventReader──► handle.stream(), task follow
    all    ──EventWriter──► Redis channel bitinglip:transitions     ──listen_transitions──► bitinglip events
    client ──wake_worker──► Redis channel bitinglip:wake:{worker}   ──WakeListener──► the worker beats now

An event's id is `attempt-sequence`, and Redis refuses an id that is not greater than the last: the events of a worker
that lost its task never reach a reader. The stream is a view: it is bounded, it expires, and it may be wiped. Whoever
reads it falls back to the record, and a writer that cannot reach Redis drops events and goes on.

A stream outlives its workers. A later attempt writes `started`, which shuts the earlier ones out, reads what they have
sent, and writes `resumed` (the text goes on) or `restart` (it begins again): see `takeover`. Readers keep their text at
`started` and drop it at `restart` only.

Decision: `queued` is never written to a stream. Every recorded task was queued, so the reader makes that event from the
record; a submission costs no round trip to Redis and needs no Redis.

The two channels are doorbells: nobody waits for them, and what they say is in the record too.
"""
