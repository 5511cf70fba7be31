"""Keep every worker's own queue shallow: plan, reserve, ring.

    wait for NOTIFY ─► settle ─► round: lock, read lanes and workers, plan, reserve, commit ─► ring doorbells
      (or half a second)         sweep: rescue, wake what is due, expire, correct hints

    plan       pure: which task to which worker
    round      one plan, reserved in one transaction
    doorbells  Celery messages
    sweep      what is done by the clock
    loop       all of it, until it is stopped

Invariants:

- Plan and reserve run under one advisory lock, so any number of dispatchers may run and any may be killed: slots are
  never over-filled.
- No lease is ended within a lease of PostgreSQL's return: workers that could not renew theirs get their time.
- A doorbell is rung after its reservation is committed. One that is lost is delivered by the worker's heartbeat.

Decision: a worker is given twice its slots, so that the next task is at hand when one ends. The price: a late critical
task waits behind what is at hand, one task per slot at most.
"""
