"""Artifacts: the files that tasks make, and those that people bring for them.

    engine ──► spool ──► store ──► the fenced finish names it ──► sweep deletes what no record names
                           ▲
    upload ────────────────┘

    store     a folder or a URL, through fsspec; `folder` and `remote` write to the one and the other
    spool     a folder for each attempt on its worker, gone when the attempt has ended
    upload    a picture that somebody brings, by its bytes
    sweep     deletes what nothing names

A file's name holds its task and its attempt. Files are stored before the ending is recorded, so that no record ever
names a file that is not there; a worker that is killed in between leaves one that no record names, and so does one
whose ending is refused. The sweep finds those: a file is somebody's while its attempt is the one that runs, or once
the record of its task names it.

Decisions:
- **A record holds names, not places**: the folder may be moved to S3 and nothing is rewritten.
- **A file that a task made makes the tasks that take it its children**: so only the agent's own can be taken, and the
  task stays until they have had it.
- **An upload is named by its hash**: brought twice it is one file, a submission that is repeated is the same, and who
  can name it has it. Rejected: names by chance, with which an idempotency key never met its like.
- **A task takes only a file that its maker's record names**, and is refused with it otherwise: a name with a slip in it
  is found out when it is submitted. Of uploads only the worker knows: the client need not see the store.
- **A folder goes with its last file**, under a lock on the place that whoever makes a file in it shares. Tries alone
  were not enough beside one that deletes without pause; they stay for file systems that know of no locks.
- **A place has one owner**, the system whose database came first: two would each sweep what the other's records name.
"""
