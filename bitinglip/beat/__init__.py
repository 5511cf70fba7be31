"""What recurs: tasks and chores of `beat/schedule.toml`, run by Celery's beat.

    celery -A bitinglip beat ─► scheduler ─► due ─► lifecycle.recur ─► PostgreSQL: claim the due time, record the task
                                              │                  └──► Celery message: a chore, for any worker
                                              └ schedule, times: what, and when

    schedule    beat/schedule.toml, checked
    times       the due times of a cron line or an interval: pure
    due         what is due by PostgreSQL's clock, and how long to sleep
    scheduler   the class that Celery's beat runs

Invariants:

- A due time is an instant that follows from the schedule alone, whoever computes it and when.
- A due time is claimed in the transaction that records its task, and claimed times of an entry only grow. So any number
  of beats may run and any may be killed: each due time becomes one task, or none yet.

Decisions:

- No shelve file: `recurring` in PostgreSQL knows the last due time of each entry, so beat may move to another machine.
- After an absence the last due time that was missed is run, and not each of them: a task that reads the news wants to
  be asked once. An entry that is new to the database begins with its next due time.
- PostgreSQL's clock, not ours: two beats agree, and one whose clock is wrong claims nothing ahead of its time.

Weakness: an entry whose times were edited, or one that returns after it was removed, may be due at once, as after an
absence. Give it a new name to begin anew.
"""
