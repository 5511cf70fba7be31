"""Models: fetched once, proven byte by byte, kept, and known to every node.

    submit download ─► download task ─► engine ─► downloader.bring ─► cache (one node's files)
                                                     │    ▲              │ read by engines, served to peers
                                        hub, peers ◄─┘    └── room       ▼
                                                               registry ─► PostgreSQL: models, model_copies, nodes

    names and manifests are in `domain.models`, statements in `store.entries` and `store.copies`.

    locate      a model's name to its folder on this node
    hub         what the hub says of a model, by huggingface_hub; hub_stream its files' bytes, hub_errors its failures
    stopping    calls that end when told to, whatever the network does
    selection   which of its files are needed
    needs       what its files say that it needs of a worker
    pinning     its commit and its manifest, from then on
    source      where a file can be had: what the hub and other nodes have in common
    fetch       one file, from any source, going on where it was cut: `inflow` reads it, `part` keeps and hashes it
    hashing     bytes proven against a manifest
    cache       the files on this node, in huggingface_hub's layout
    room        what leaves when there is no room
    removal     a model goes: who is in the way, and one node's files
    downloader  a whole model: looked up, fetched, proven, registered; a `job` each, whose `record` is in the database
    transfer    several files at once, held to a rate by `throttle`, counted by `progress`
    peers       nodes take models from each other
    registry    what is registered: list, pin, verify, remove, dump and restore
    scan        what is on a node's disk, with or without a database that knows it
    proving     a copy's bytes, and the record of it
    documents   registered models as JSON
    lookup      a name, as people write it, to what is registered
    engine      the `download` kind: downloads as tasks

Invariants:

- A copy is `available` only when each of its bytes has been hashed and found to be the manifest's. What is used by an
  engine or served to a peer is an available copy.
- A registered model is pinned to a commit: a branch that moves changes nothing until the model is removed and fetched
  again.
- One process writes to a model's files on a node at a time, and none deletes what another one reads: file locks, which
  the kernel lets go of when a process is killed.
"""
