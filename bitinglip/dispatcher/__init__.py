"""Keep every worker's own queue shallow: settle, plan, reserve, ring.

    wait for NOTIFY ─► settle children ─► round: lock, settle charges, admit arrivals, read lanes and
      (or half a second)                    │    workers, plan, reserve, commit ─► ring doorbells
                                          sweep: rescue, wake what is due, expire, correct hints

    plan       pure: which task to which worker, in the order of fairness
    placement  pure: where a task can go, so that models stay where they are
    arrivals   queues that turned from empty to non-empty
    round      one plan, reserved in one transaction
    doorbells  Celery messages
    sweep      what is done by the clock
    loop       all of it, until it is stopped

Invariants:

- Plan and reserve run under one advisory lock, so any number of dispatchers may run and any may be killed: slots,
  limits and budgets are never over-filled.
- An agent is charged when a task is reserved, and what was charged is settled exactly once, whatever becomes of the
  task: the statement that takes it from its worker records the settlement.
- No lease is ended within a lease of PostgreSQL's return: workers that could not renew theirs get their time.
- A doorbell is rung after its reservation is committed. One that is lost is delivered by the worker's heartbeat.

Decisions:

- A worker is given twice its slots, so that the next task is at hand when one ends. So that a late critical task need
  not wait behind what is at hand, the round marks the workers that could run it, and a claim there of anything less
  urgent goes back to its queue: the first slot that frees is its own, on whatever worker. Rejected: taking reservations
  back at once, which voids doorbells on every worker for one task.
- Virtual time is charged by an estimate and settled, rather than counted token by token: a grant here is a whole task,
  and nobody writes to a hot row while it runs. An agent whose cost is not known yet gets its part of the slots and no
  place beside them until it is.
- What a round reads is in `lanes`, written by dispatchers alone and in the order in which lanes are served. Rejected:
  joining every queue with its agent and sorting, which reads 10,000 rows to find the next three.
- An agent's limits close its lanes, with the reason, until something changes. So nobody who may not run stands in the
  way of those who may, and `task explain` repeats the dispatcher's own word.
"""
