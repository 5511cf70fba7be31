"""The tables. `migrations/` brings a database here; `alembic check` proves that it does.

`tasks` is narrow: only what scheduling touches. What a task says and gave is in `task_details`, written twice in its
life. `attempts` holds the attempts that have ended; the one that runs is the task's own row.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    false,
    func,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from bitinglip.domain.task import Priority, QueueState, Status
from bitinglip.store.storage import STORAGE

metadata = MetaData()


def _enum(kind: type[Status] | type[QueueState] | type[Priority], name: str) -> Enum:
    return Enum(
        kind, name=name, values_callable=lambda members: [member.value for member in members], metadata=metadata
    )


STATUS = _enum(Status, "task_status")
QUEUE_STATE = _enum(QueueState, "task_queue_state")
PRIORITY = _enum(Priority, "task_priority")
TIME = DateTime(timezone=True)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("type", Text, nullable=False),
    Column("status", STATUS, nullable=False, server_default=Status.PENDING),
    Column("queue_state", QUEUE_STATE, nullable=True, server_default=QueueState.READY),
    Column("priority", PRIORITY, nullable=False, server_default=Priority.MEDIUM),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("failures", SmallInteger, nullable=False, server_default="0"),
    Column("max_attempts", SmallInteger, nullable=False),
    Column("progress", Double, nullable=False, server_default="0"),
    Column("agent_id", Text, nullable=False),
    Column("user_id", Text),
    Column("channel_id", Text),
    Column("model", Text),
    Column("worker_id", Uuid),
    Column("charged", Double),
    Column("error_code", Text),
    Column("idempotency_key", Text),
    Column("suspect", Boolean, nullable=False, server_default=false()),
    Column("has_children", Boolean, nullable=False, server_default=false()),
    Column("ttl_seconds", Integer),
    Column("not_before", TIME),
    Column("expires_at", TIME),
    Column("reserved_at", TIME),
    Column("cancel_requested_at", TIME),
    Column("created_at", TIME, nullable=False, server_default=func.now()),
    Column("updated_at", TIME, nullable=False, server_default=func.now()),
    Column("started_at", TIME),
    Column("finished_at", TIME),
    CheckConstraint("(status = 'pending') = (queue_state IS NOT NULL)", name="tasks_queue_state_while_pending"),
    CheckConstraint(
        "(status IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="tasks_finished_when_final"
    ),
    CheckConstraint("status <> 'in_progress' OR worker_id IS NOT NULL", name="tasks_running_has_worker"),
    CheckConstraint("queue_state <> 'reserved' OR worker_id IS NOT NULL", name="tasks_reserved_has_worker"),
    CheckConstraint("queue_state <> 'scheduled' OR not_before IS NOT NULL", name="tasks_scheduled_has_time"),
    CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="tasks_failed_has_error"),
    CheckConstraint("attempt >= 1", name="tasks_attempt_from_one"),
    CheckConstraint("failures BETWEEN 0 AND max_attempts", name="tasks_failures_bounded"),
    CheckConstraint("max_attempts BETWEEN 1 AND 11", name="tasks_max_attempts_bounded"),
    CheckConstraint("progress BETWEEN 0 AND 1", name="tasks_progress_fraction"),
    CheckConstraint("length(agent_id) BETWEEN 1 AND 100", name="tasks_agent_id_length"),
    CheckConstraint("length(user_id) BETWEEN 1 AND 100", name="tasks_user_id_length"),
    CheckConstraint(r"channel_id ~ '^\d{17,19}$'", name="tasks_channel_id_digits"),
    Index("tasks_seq", "seq", unique=True),
    Index(
        "tasks_ready",
        "type",
        text("coalesce(model, '')"),
        "agent_id",
        "priority",
        "seq",
        postgresql_where=text("queue_state = 'ready'"),
    ),
    Index(
        "tasks_later",
        "agent_id",
        "type",
        text("coalesce(model, '')"),
        "priority",
        postgresql_where=text("queue_state IN ('scheduled', 'blocked')"),
    ),
    Index("tasks_oldest", "type", "priority", "seq", postgresql_where=text("queue_state = 'ready'")),
    Index("tasks_scheduled", "not_before", postgresql_where=text("queue_state = 'scheduled'")),
    Index("tasks_held", "worker_id", postgresql_where=text("worker_id IS NOT NULL AND finished_at IS NULL")),
    Index("tasks_status", "status", "priority", "seq"),
    Index("tasks_agent", "agent_id", "status", "seq"),
    Index("tasks_channel", "channel_id", "status", "seq", postgresql_where=text("channel_id IS NOT NULL")),
    Index("tasks_created", "created_at", postgresql_using="brin"),
    Index("tasks_expiry", "expires_at", postgresql_where=text("queue_state IS NOT NULL AND started_at IS NULL")),
    Index("tasks_settle", "id", postgresql_where=text("has_children AND finished_at IS NOT NULL")),
    Index(
        "tasks_idempotency",
        "agent_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
)

task_details = Table(
    "task_details",
    metadata,
    Column("task_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("title", Text, nullable=False),
    Column("description", Text),
    Column("payload", JSONB, nullable=False),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("depends_on", ARRAY(Uuid), nullable=False, server_default=text("'{}'")),
    Column("result", JSONB),
    Column("error", JSONB),
    Column("usage", JSONB),
    CheckConstraint("length(title) BETWEEN 1 AND 200", name="task_details_title_length"),
    CheckConstraint("length(description) <= 2000", name="task_details_description_length"),
    CheckConstraint("jsonb_typeof(payload) = 'object'", name="task_details_payload_object"),
    CheckConstraint("jsonb_typeof(metadata) = 'object'", name="task_details_metadata_object"),
    Index(
        "task_details_metadata",
        "metadata",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=text("metadata <> '{}'"),
    ),
)

dependencies = Table(
    "dependencies",
    metadata,
    Column("child_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("parent_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    CheckConstraint("child_id <> parent_id", name="dependencies_not_on_itself"),
    Index("dependencies_parent", "parent_id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("task_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("worker_id", Uuid),
    Column("outcome", Text, nullable=False),
    Column("error", JSONB),
    Column("usage", JSONB),
    Column("started_at", TIME),
    Column("finished_at", TIME, nullable=False, server_default=func.now()),
    CheckConstraint(
        "outcome IN ('completed', 'failed', 'retried', 'cancelled', 'lost')", name="attempts_outcome_known"
    ),
)

agents = Table(
    "agents",
    metadata,
    Column("id", Text, primary_key=True),
    Column("weight", Double, nullable=False, server_default="1"),
    Column("max_priority", PRIORITY),
    Column("max_queued", Integer),
    Column("max_running", Integer),
    Column("daily_seconds", Double),
    Column("daily_tokens", BigInteger),
    Column("paused", Boolean, nullable=False, server_default=false()),
    Column("spent_on", Date),
    Column("spent_seconds", Double, nullable=False, server_default="0"),
    Column("spent_tokens", BigInteger, nullable=False, server_default="0"),
    Column("created_at", TIME, nullable=False, server_default=func.now()),
    CheckConstraint("max_running BETWEEN 1 AND 1000000", name="agents_max_running_bounded"),
    CheckConstraint("daily_seconds > 0", name="agents_daily_seconds_positive"),
    CheckConstraint("daily_tokens > 0", name="agents_daily_tokens_positive"),
    CheckConstraint("length(id) BETWEEN 1 AND 100", name="agents_id_length"),
    CheckConstraint("weight > 0 AND weight <= 1000", name="agents_weight_bounded"),
    CheckConstraint("max_queued BETWEEN 1 AND 10000000", name="agents_max_queued_bounded"),
)

agent_shares = Table(
    "agent_shares",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("virtual_time", Double, nullable=False, server_default="0"),
    Column("in_flight", Integer, nullable=False, server_default="0"),
)

pools = Table(
    "pools",
    metadata,
    Column("name", Text, primary_key=True),
    Column("virtual_time", Double, nullable=False, server_default="0"),
    Column("grants", BigInteger, nullable=False, server_default="0"),
    Column("kinds", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("workers_digest", Text, nullable=False, server_default=""),
)

queues = Table(
    "queues",
    metadata,
    Column("type", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("priority", PRIORITY, primary_key=True),
    Column("has_ready", Boolean, nullable=False, server_default=true()),
    Column("listed", Boolean, nullable=False, server_default=false()),
    Column("emptied_at", TIME),
    Index("queues_unlisted", "type", postgresql_where=text("has_ready AND NOT listed")),
    Index("queues_emptied", "emptied_at", postgresql_where=text("NOT has_ready")),
    Index("queues_agent", "agent_id"),
)

# What releases before 0.2 write in place of `queues`; the sweep passes it on. To be dropped with their support.
agent_queues = Table(
    "agent_queues",
    metadata,
    Column("type", Text, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("priority", PRIORITY, primary_key=True),
    Column("has_ready", Boolean, nullable=False, server_default=true()),
    Column("emptied_at", TIME),
    Index("agent_queues_ready", "type", "priority", postgresql_where=text("has_ready")),
    Index("agent_queues_emptied", "emptied_at", postgresql_where=text("NOT has_ready")),
)

lanes = Table(
    "lanes",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("priority", PRIORITY, primary_key=True),
    Column("virtual_time", Double, nullable=False),
    Column("closed", Text),
    Column("passed_at", TIME),
    Index("lanes_open", "pool", "type", "model", "priority", "virtual_time", postgresql_where=text("closed IS NULL")),
    Index("lanes_closed", "pool", "closed", postgresql_where=text("closed IS NOT NULL")),
    Index("lanes_agent", "agent_id", "pool"),
    Index("lanes_passed", "pool", "type", "model", postgresql_where=text("passed_at IS NOT NULL")),
)

settlements = Table(
    "settlements",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("pool", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("released", Integer, nullable=False),
    Column("charged", Double, nullable=False),
    Column("cost", Double, nullable=False, server_default="0"),
    Column("measured", Integer, nullable=False, server_default="0"),
    Column("measured_cost", Double, nullable=False, server_default="0"),
    Column("running_seconds", Double, nullable=False, server_default="0"),
    Column("seconds", Double, nullable=False, server_default="0"),
    Column("tokens", BigInteger, nullable=False, server_default="0"),
    Column("peak_seconds", Double, nullable=False, server_default="0"),
    Column("peak_tokens", BigInteger, nullable=False, server_default="0"),
)

costs = Table(
    "costs",
    metadata,
    Column("pool", Text, primary_key=True),
    Column("type", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("samples", BigInteger, nullable=False),
    Column("cost", Double, nullable=False),
    Column("running_seconds", Double, nullable=False),
    Column("peak_seconds", Double, nullable=False),
    Column("peak_tokens", Double, nullable=False),
    Column("updated_at", TIME, nullable=False, server_default=func.now()),
)

agent_usage = Table(
    "agent_usage",
    metadata,
    Column("minute", TIME, primary_key=True),
    Column("pool", Text, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("tasks", BigInteger, nullable=False),
    Column("cost", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Index("agent_usage_agent", "agent_id", "minute"),
)

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("weight_bytes", BigInteger),
    Column("held_bytes", BigInteger),
    Column("updated_at", TIME, nullable=False, server_default=func.now()),
)

load_failures = Table(
    "load_failures",
    metadata,
    Column("model", Text, primary_key=True),
    Column("worker_name", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("failed_at", TIME, nullable=False, server_default=func.now()),
    Column("retry_at", TIME, nullable=False),
)

quotes = Table(
    "quotes",
    metadata,
    Column("task_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("made_at", TIME, nullable=False, server_default=func.now()),
    Column("wait_p50_seconds", Double, nullable=False),
    Column("wait_p90_seconds", Double, nullable=False),
    Column("engine_seconds", Double, nullable=False),
    Index("quotes_made", "made_at"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("node", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("state", Text, nullable=False, server_default="ready"),
    Column("kinds", ARRAY(Text), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("gpus", JSONB, nullable=False, server_default=text("'[]'")),
    Column("models", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("memory_bytes", BigInteger, nullable=False, server_default="0"),
    Column("memory_limit_bytes", BigInteger),
    Column("engine_up", Boolean, nullable=False, server_default=true()),
    Column("problem", Text),
    Column("speed", Double, nullable=False, server_default="1"),
    Column("charge", Text, nullable=False, server_default="seconds"),
    Column("allowed_models", ARRAY(Text)),
    Column("allowed_agents", ARRAY(Text)),
    Column("model_bytes", JSONB, nullable=False, server_default=text("'{}'")),
    Column("yields", Boolean, nullable=False, server_default=false()),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", TIME, nullable=False, server_default=func.now()),
    Column("last_seen_at", TIME, nullable=False, server_default=func.now()),
    Column("lease_expires_at", TIME, nullable=False),
    CheckConstraint("state IN ('ready', 'pulling', 'draining', 'gone')", name="workers_state_known"),
    CheckConstraint("slots BETWEEN 1 AND 4096", name="workers_slots_bounded"),
    CheckConstraint("speed > 0", name="workers_speed_positive"),
    CheckConstraint("charge IN ('seconds', 'tokens', 'tasks')", name="workers_charge_known"),
    Index("workers_name_alive", "name", unique=True, postgresql_where=text("state <> 'gone'")),
)

recurring = Table(
    "recurring",
    metadata,
    Column("name", Text, primary_key=True),
    Column("last_due_at", TIME, nullable=False),
    Column("last_task_id", Uuid),
    CheckConstraint("length(name) BETWEEN 1 AND 100", name="recurring_name_length"),
)

agent_reports = Table(
    "agent_reports",
    metadata,
    Column("day", Date, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("submitted", BigInteger, nullable=False),
    Column("completed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("engine_seconds", Double, nullable=False),
    Column("wait_p50_seconds", Double),
    Column("wait_p95_seconds", Double),
    Column("created_at", TIME, nullable=False, server_default=func.now()),
)

for _name, _parameters in STORAGE.items():
    metadata.tables[_name].dialect_options["postgresql"]["with"] = _parameters
