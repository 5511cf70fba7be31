"""Models: fetched once, proven byte by byte, kept, and known to every node.

    submit download ─► download task ─► engine ─► downloader.bring ─► cache (one node's files)
                                                     │    ▲              │ read by engines, served to peers
                                        hub, peers ◄─┘    └── room       ▼
                                                               registry ─► PostgreSQL: models, model_copies, nodes

    names and manifests are in `domain.models`, statements in `store.entries` and `store.copies`.

    hub/        what the hub says of a model, and which of its files are needed
    transfer/   files on their way, from any source, going on where they were cut
    peers/      nodes take models from each other
    cache       the files on this node, in huggingface_hub's layout
    hashing     bytes proven against a manifest
    room        what leaves when there is no room
    needs       what a model's files say that it needs of a worker
    downloader  a whole model: looked up, fetched, proven, registered; a `job` each, whose `record` is in the database
    engine      the `download` kind: downloads as tasks
    registry    what is registered: list, pin, verify, remove, dump and restore
    scan        what is on a node's disk, with or without a database that knows it
    proving     a copy's bytes, and the record of it
    removal     a model goes: who is in the way, and one node's files
    locate      a model's name to its folder on this node
    lookup      a name, as people write it, to what is registered
    documents   registered models as JSON

Invariants:

- A copy is `available` only when each of its bytes has been hashed and found to be the manifest's. What is used by an
  engine or served to a peer is an available copy.
- A registered model is pinned to a commit: a branch that moves changes nothing until the model is removed and fetched
  again.
- One process writes to a model's files on a node at a time, and none deletes what another one reads: file locks, which
  the kernel lets go of when a process is killed.
"""
