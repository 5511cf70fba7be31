"""Celery's settings for BitingLip's workers. Every process that talks to the broker must share them.

Where: `celery -A bitinglip worker` and `bitinglip worker start` print which file they read; `BITINGLIP_CELERY_CONFIG`
names another. The broker's URL and its password come from BITINGLIP_REDIS_URL, never from here.
"""

# Threads that wait for an engine process; the engine is where the work is. One thread per slot, set by pools.toml, and
# one for chores.
worker_pool = "threads"

# A doorbell is acknowledged when its task has ended, and one worker holds no more of them than it has slots.
task_acks_late = True
worker_prefetch_multiplier = 1

# The record in PostgreSQL is the truth: a doorbell that is lost is delivered by the worker's heartbeat. So no copy of
# unacknowledged messages in Redis, and no visibility timeout that would deliver one twice.
# One priority step: order is decided in PostgreSQL.
broker_transport_options = {
    "ack_emulation": False,
    "priority_steps": [0],
    "socket_timeout": 10,
    "socket_connect_timeout": 2,
}

# Come back whenever Redis does. A task that runs goes on while the broker is away.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
worker_cancel_long_running_tasks_on_connection_loss = False

# JSON only: a message can never carry code.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]

# What recurs is in beat/schedule.toml, and what of it has run in PostgreSQL: `celery -A bitinglip beat` writes no file.
beat_scheduler = "bitinglip.beat.scheduler:Scheduler"

# Results are in PostgreSQL.
task_ignore_result = True

# Flower lives on events.
worker_send_task_events = True
task_track_started = True

worker_hijack_root_logger = False
worker_redirect_stdouts = False
enable_utc = True
timezone = "UTC"
