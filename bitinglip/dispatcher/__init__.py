"""Keep every worker's own queue shallow: plan, reserve, ring.

    wait for NOTIFY (or a second) ─► round: lock, read lanes and workers, plan, reserve, commit ─► ring doorbells
                                     sweep each second: rescue, wake what is due, correct hints

Invariants:

- Plan and reserve run under one advisory lock, so any number of dispatchers may run and any may be killed: slots are
  never over-filled.
- A doorbell is rung after its reservation is committed. One that is lost is delivered by the worker's heartbeat.

Decision: a worker is given twice its slots, so that the next task is at hand when one ends. The price: a late critical
task waits behind what is at hand, one task per slot at most.
"""
