"""Create tasks, agents, agent queues and workers.

The first schema. The downgrade drops everything, every task included.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

TIME = sa.DateTime(timezone=True)
TASK_PRIORITY = postgresql.ENUM("critical", "high", "medium", "low", name="task_priority", create_type=False)
TASK_STATUS = postgresql.ENUM(
    "pending", "in_progress", "completed", "failed", "cancelled", name="task_status", create_type=False
)
TASK_QUEUE_STATE = postgresql.ENUM(
    "ready", "reserved", "scheduled", "blocked", name="task_queue_state", create_type=False
)
ENUMS = (TASK_PRIORITY, TASK_STATUS, TASK_QUEUE_STATE)


def upgrade() -> None:
    """Create every type, table and index."""
    for enum in ENUMS:
        enum.create(op.get_bind())
    op.create_table(
        "agent_queues",
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("priority", TASK_PRIORITY, nullable=False),
        sa.Column("has_ready", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("emptied_at", TIME),
        sa.PrimaryKeyConstraint("type", "agent_id", "priority"),
    )
    op.create_index("agent_queues_emptied", "agent_queues", ["emptied_at"], postgresql_where=sa.text("NOT has_ready"))
    op.create_index("agent_queues_ready", "agent_queues", ["type", "priority"], postgresql_where=sa.text("has_ready"))
    op.create_table(
        "agent_shares",
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("virtual_time", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("pool", "agent_id"),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("weight", sa.Double(), server_default="1", nullable=False),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("length(id) BETWEEN 1 AND 100", name="agents_id_length"),
        sa.CheckConstraint("weight > 0 AND weight <= 1000", name="agents_weight_bounded"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "pools",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("virtual_time", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("status", TASK_STATUS, server_default="pending", nullable=False),
        sa.Column("queue_state", TASK_QUEUE_STATE, server_default="ready"),
        sa.Column("priority", TASK_PRIORITY, server_default="medium", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("failures", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.SmallInteger(), nullable=False),
        sa.Column("progress", sa.Double(), server_default="0", nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("channel_id", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("error_code", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("not_before", TIME),
        sa.Column("expires_at", TIME),
        sa.Column("reserved_at", TIME),
        sa.Column("cancel_requested_at", TIME),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.CheckConstraint("(status = 'pending') = (queue_state IS NOT NULL)", name="tasks_queue_state_while_pending"),
        sa.CheckConstraint(
            "(status IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)",
            name="tasks_finished_when_final",
        ),
        sa.CheckConstraint("channel_id ~ '^\\d{17,19}$'", name="tasks_channel_id_digits"),
        sa.CheckConstraint("queue_state <> 'reserved' OR worker_id IS NOT NULL", name="tasks_reserved_has_worker"),
        sa.CheckConstraint("queue_state <> 'scheduled' OR not_before IS NOT NULL", name="tasks_scheduled_has_time"),
        sa.CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="tasks_failed_has_error"),
        sa.CheckConstraint("status <> 'in_progress' OR worker_id IS NOT NULL", name="tasks_running_has_worker"),
        sa.CheckConstraint("attempt >= 1", name="tasks_attempt_from_one"),
        sa.CheckConstraint("failures BETWEEN 0 AND max_attempts", name="tasks_failures_bounded"),
        sa.CheckConstraint("length(agent_id) BETWEEN 1 AND 100", name="tasks_agent_id_length"),
        sa.CheckConstraint("length(user_id) BETWEEN 1 AND 100", name="tasks_user_id_length"),
        sa.CheckConstraint("max_attempts BETWEEN 1 AND 11", name="tasks_max_attempts_bounded"),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name="tasks_progress_fraction"),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("tasks_agent", "tasks", ["agent_id", "status", "seq"])
    op.create_index(
        "tasks_channel", "tasks", ["channel_id", "status", "seq"], postgresql_where=sa.text("channel_id IS NOT NULL")
    )
    op.create_index("tasks_created", "tasks", ["created_at"], postgresql_using="brin")
    op.create_index(
        "tasks_held", "tasks", ["worker_id"], postgresql_where=sa.text("worker_id IS NOT NULL AND finished_at IS NULL")
    )
    op.create_index(
        "tasks_idempotency",
        "tasks",
        ["agent_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "tasks_ready",
        "tasks",
        ["type", "agent_id", "priority", "seq"],
        postgresql_where=sa.text("queue_state = 'ready'"),
    )
    op.create_index("tasks_scheduled", "tasks", ["not_before"], postgresql_where=sa.text("queue_state = 'scheduled'"))
    op.create_index("tasks_seq", "tasks", ["seq"], unique=True)
    op.create_index("tasks_status", "tasks", ["status", "priority", "seq"])
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("state", sa.Text, server_default="ready", nullable=False),
        sa.Column("kinds", sa.ARRAY(sa.Text), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("gpus", postgresql.JSONB, server_default=sa.text("'[]'"), nullable=False),
        sa.Column("models", sa.ARRAY(sa.Text), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("memory_limit_bytes", sa.BigInteger()),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("started_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("lease_expires_at", TIME, nullable=False),
        sa.CheckConstraint("state IN ('ready', 'draining', 'gone')", name="workers_state_known"),
        sa.CheckConstraint("slots BETWEEN 1 AND 4096", name="workers_slots_bounded"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("workers_name_alive", "workers", ["name"], unique=True, postgresql_where=sa.text("state <> 'gone'"))
    op.create_table(
        "attempts",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("error", postgresql.JSONB),
        sa.Column("usage", postgresql.JSONB),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('completed', 'failed', 'retried', 'cancelled', 'lost')", name="attempts_outcome_known"
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "attempt"),
    )
    op.create_table(
        "task_details",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("payload", postgresql.JSONB, nullable=False),
        sa.Column("metadata", postgresql.JSONB, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("depends_on", sa.ARRAY(sa.Uuid()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("result", postgresql.JSONB),
        sa.Column("error", postgresql.JSONB),
        sa.Column("usage", postgresql.JSONB),
        sa.CheckConstraint("jsonb_typeof(metadata) = 'object'", name="task_details_metadata_object"),
        sa.CheckConstraint("jsonb_typeof(payload) = 'object'", name="task_details_payload_object"),
        sa.CheckConstraint("length(description) <= 2000", name="task_details_description_length"),
        sa.CheckConstraint("length(title) BETWEEN 1 AND 200", name="task_details_title_length"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_index(
        "task_details_metadata",
        "task_details",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=sa.text("metadata <> '{}'"),
    )


def downgrade() -> None:
    """Drop every table and type."""
    for table in ("task_details", "attempts", "workers", "tasks", "pools", "agents", "agent_shares", "agent_queues"):
        op.drop_table(table)
    for enum in ENUMS:
        enum.drop(op.get_bind())
