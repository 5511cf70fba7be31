"""A worker: a Celery process that waits, and the engine process that it watches.

    Celery consumer ─► thread ─► lifecycle.run.TaskRunner ─► engine.link ─► engine process
                                        │ claim, finish (gathered)
    heartbeat (every 2 s) ─► PostgreSQL: lease renewed; missed, cancelled and lost tasks heard of

    pools      workers/pools.toml: which kinds, GPUs, slots and memory a pool has
    hardware   the GPUs of this machine
    gather     many threads' statements become one
    lease      its registration, and its own deadline
    models     what it learns of models: where they are, what they take, which fail to load
    shelf      models of the hub: found on this node, brought if need be, kept while they are used
    stock      what its pool wants from the start: models registered, pinned, brought and loaded
    artifacts  the files that its tasks take and make, and whether other nodes see the same store
    missed     runs what no doorbell rang for
    node       keeps its node, if it downloads: says that it is there, serves its models, deletes those that are to go
    runtime    one worker's life: register, run, beat, leave
    celery     how the runtime hangs on Celery's signals, and what `revoke` means here

Invariants: at most `slots` attempts run at once, whether Celery or the heartbeat brought them. The heartbeat is enough
to work: with Redis gone it delivers what is reserved.
"""
