"""The life of a task, a file a step. Every step is one transaction, or a few that may each be the last.

    submit   a request becomes a record, within its agent's limits: ready, scheduled, or blocked by its parents
      feasible   what no worker could ever do is refused
        fleet    the workers and models that there are, as one picture
      bring      a model that is not here is fetched first, once for everybody
    waiting  its time comes, its parents end, or it has waited too long
             (dispatcher.plan reserves it for a worker and rings that worker's doorbell)
    claim    the worker takes the lease: one attempt is now its own
    run      the engine works; events flow; the attempt ends
      solitude   a suspect runs alone
      outcome    what the attempt comes to: blame, retry, time limit
    finish   the outcome is recorded, if the attempt is still this worker's
    cancel   pending: at once; running: flagged, and stopped by its worker
    lease    a worker registers, renews, and hears what it missed
    loads    a model could not be loaded: not the task's failure
    rescue   a worker is gone; what it held is ready again
    take     an agent takes a task itself, under the same lease
    edit     people retry, change and delete records
    agents   people limit agents
    explain  why a task waits, and what would release it
      ability, hindrance   what can be in the way: of a worker, of an agent
      line     who goes before it
    quote    when a task would run; and how true that was
    recur    a due time becomes a task, once
    report   what a day's tasks came to

The lease on a task is `(task_id, attempt, worker_id)`, and every write names all three. A message from Celery is only a
doorbell: losing, repeating or delaying it changes nothing but the time.
"""
