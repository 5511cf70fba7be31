"""What PostgreSQL holds: the truth about every task, and the queue itself.

    tables      the schema; alembic compares the migrations with it
    database    connections, transactions, and the check that code and schema agree
    tasks       submit, reserve, claim, finish, cancel: one statement a function
    agents      agents, their queues and their shares
    workers     registration, leases
    queries     what people ask: lists, counts

One SQL statement a function; `lifecycle` owns the transaction. A statement takes many tasks at once, as one JSON or
array parameter, because the price of a statement is mostly its round trip and its commit.

Decisions:

- Durable where it matters. Submitting and finishing wait for the disk; reserving and claiming do not
  (`synchronous_commit = off` in their transactions): what PostgreSQL may lose of them in a crash, at most 0.6 s,
  only means that a task is reserved or run again.
- Enums for status, queue state and priority: four bytes, ordered, readable in psql.
- Every list that people ask for (by status, by agent, by channel, by both) has its index, so each transition writes
  index entries. The alternative measured (only static columns indexed) saved a third of the index writes but could not
  list the few failed among many completed tasks of an agent.
"""
