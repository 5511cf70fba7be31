"""A model hub on loopback: folders, served as the Hugging Face hub serves repositories, and failing when told to.

    huggingface_hub ──/api/models/…──────────► hub: commits, siblings, trees, branches        (kind `api`)
     (HF_ENDPOINT)  ──/org/name/resolve/…────► hub: small files, and redirects of the large   (kind `resolve`)
                    ──/org/name/<sha256>/…───► CDN: large files, on an origin of its own      (kind `cdn`)
                    ──/cas/…─────────────────► hub: Xet's storage, where nothing ever arrives (kind `cas`)

    repos      what is served: files by their hashes, commits by their content, branches by name
    protocol   a request to its reply: routes, access, the hub's headers and errors; no socket
    faults     what goes wrong on purpose, how often, and to which requests; and the log of what was asked
    server     two listening sockets; sends replies, whole ranges by `sendfile`, and the faults into them

In a test:

    with LocalHub() as hub:
        commit = hub.add_repo("org/name", folder, licence="mit")
        hub.faults.add(Fault(kind="cdn", path="*.safetensors", cut_after_bytes=1000))
        snapshot_download("org/name", endpoint=hub.url, cache_dir=cache)
        assert hub.requests.sent_bytes("cdn") == ...

For a benchmark, in a process of its own: `python -m tests.hub FOLDER`.

Decisions: A reply is made before a fault is looked for, so that a fault can ask for the bytes it needs: one that flips
byte 5,000 waits for a range that holds it. Folders are served where they lie, never copied; a file that changes after
its commit is served as it is now, under its old hashes. Only the standard library is imported, and nothing of the
system that is tested.
"""

from tests.hub.faults import Fault, Request
from tests.hub.server import LocalHub

__all__ = ["Fault", "LocalHub", "Request"]
