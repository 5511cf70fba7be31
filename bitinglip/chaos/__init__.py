"""Break a system on purpose, again and again, and prove that no task was lost and none recorded twice.

    system ──► answers ──► burst ──► load ═══════════════════════════════╗ ──► burst ──► checks ──► report
    own | configured                 fault ──► recovery ──► steady ──► fault ...

    system     what faults may be done to: one of chaos' own, or the configured one
    processes  which process is whose engine, supervisor, dispatcher or server
    load       tasks whose results are known beforehand, and a ledger of them
    faults     each kind of fault, and how its recovery is measured
    watch      what PostgreSQL says meanwhile
    checks     the invariants, in SQL
    run        all of it, in order

Decisions:
- **Recovery is measured on a task of chaos' own**, the victim: a critical task that has just begun names, by its
  worker, which processes are hit. It is recovered when PostgreSQL's record says that its next attempt has started.
- **A fault waits until the system is steady**: every worker is back with its models, has beaten and has completed a
  task since, and no suspect of an engine's death is left. Two deaths of an engine in a row could condemn an
  innocent task.
- **A submission that failed may have been recorded** (the reply was lost): such a task is not missed if it is not
  there, and is checked like the others if it is.
- **Only what comes back by itself is killed**: a process whose parent starts it again. A node of chaos' own is kept
  down until its tasks run elsewhere, as a machine without power would be.

Weakness: what is begun is seen, not what is computed. A victim whose next attempt waits for its engine to load a model
counts as recovered.
"""
