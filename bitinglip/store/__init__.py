"""What PostgreSQL holds: the truth about every task, and the queue itself.

    tables      the schema, with sharing_tables and columns; alembic compares the migrations with it
    storage     fill factors, and when what is dead is cleared away
    consistency what should hold together, found and put right
    statement   a statement that each connection plans once
    database    connections, transactions, and the check that code and schema agree
    submissions insert, within limits
    tasks       claim, finish, cancel
    queues      what the dispatcher reads and reserves
    lanes       what it keeps of the queues between its rounds, in the order of fairness
    charges     what agents were charged becomes what their tasks have cost
    clauses     what several statements share: waking a queue, giving back a charge
    waiting     what waits for a time, a parent or its expiry
    workers     registration, leases, rescue
    pulling     tasks that agents take themselves
    records     retry, edit, delete
    artifacts   which files are somebody's
    recurring   which due times have been run
    reports     a day's figures by agent
    agents      weights, limits, budgets
    fleet       what the workers could do at all
    models      what models take; `loads`: where they failed to load
    queries     what people ask: lists, counts
    explaining  what is asked to explain a wait
    quoting     what was foretold, and what became of it
    server      what PostgreSQL says of itself
    jsonb       JSON that PostgreSQL can hold

One SQL statement a function; `lifecycle` owns the transaction. A statement takes many tasks at once, as one JSON or
array parameter, because the price of a statement is mostly its round trip and its commit.

Decisions:

- Durable where it matters. Submitting and finishing wait for the disk; reserving and claiming do not
  (`synchronous_commit = off` in their transactions): what PostgreSQL may lose of them in a crash, at most 0.6 s,
  only means that a task is reserved or run again.
- Limits without counters: what waits is counted over an index under advisory locks, shared while every connection that
  there may be could still submit one, exclusive for the last places. Rejected: a counter for each agent (395
  submissions a second on one hot row), and counting without a lock (fifty at once pass the limit together).
- Dependencies are rows, and a parent says that it has children. Submitting a child updates its parents' rows, so that
  whoever ends a parent at the same moment waits and then sees the mark; ended parents with the mark are an index that
  dispatchers work off. Rejected: unblocking in the statement that ends the parent, whose snapshot is older than the
  child's commit.
- Enums for status, queue state and priority: four bytes, ordered, readable in psql.
- Every list that people ask for (by status, by agent, by channel, by both) has its index, and status is in most of
  them. So the three updates in a task's life (reserve, claim, finish) are not HOT (measured: 1 of 115,713), and each
  writes an entry in every index that holds the row. Rejected: no index with status in it, which would find the few
  failed among an agent's many completed tasks only by reading them all. What happens more often than three times a
  task (heartbeats, progress, tokens) never touches the row.
"""
