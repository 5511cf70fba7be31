"""What a task is, without I/O: its fields, its statuses, its kinds, and when it is tried again."""
