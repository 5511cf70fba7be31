"""Share by work: queues by model, charges, limits, memory of models, quotes.

Expand. Safe while old workers and dispatchers run, as long as a new dispatcher does: what old ones make ready is passed
on by its sweep, and what they run is charged to nobody. The downgrade forgets what was charged and refused.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

TIME = sa.DateTime(timezone=True)
PRIORITY = postgresql.ENUM("critical", "high", "medium", "low", name="task_priority", create_type=False)
READY = sa.text("queue_state = 'ready'")


def make_agent_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("max_running", sa.Integer),
        sa.Column("daily_seconds", sa.Double),
        sa.Column("daily_tokens", sa.BigInteger),
        sa.Column("paused", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("spent_on", sa.Date),
        sa.Column("spent_seconds", sa.Double, server_default="0", nullable=False),
        sa.Column("spent_tokens", sa.BigInteger, server_default="0", nullable=False),
    ]


AGENT_CHECKS = {
    "agents_max_running_bounded": "max_running BETWEEN 1 AND 1000000",
    "agents_daily_seconds_positive": "daily_seconds > 0",
    "agents_daily_tokens_positive": "daily_tokens > 0",
}


def make_worker_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("speed", sa.Double, server_default="1", nullable=False),
        sa.Column("charge", sa.Text, server_default="seconds", nullable=False),
        sa.Column("allowed_models", postgresql.ARRAY(sa.Text)),
        sa.Column("allowed_agents", postgresql.ARRAY(sa.Text)),
        sa.Column("model_bytes", postgresql.JSONB, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("yields", sa.Boolean, server_default=sa.false(), nullable=False),
    ]


WORKER_CHECKS = {
    "workers_speed_positive": "speed > 0",
    "workers_charge_known": "charge IN ('seconds', 'tokens', 'tasks')",
}
SMALL = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_cost_delay": "0",
    "autovacuum_analyze_scale_factor": "0.1",
}
LARGE = {
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.02",
    "autovacuum_vacuum_cost_delay": "1",
}
OLD_STORAGE = {
    "tasks": LARGE,
    "task_details": {"fillfactor": "80", **LARGE},
    "attempts": LARGE,
    "agent_shares": {"fillfactor": "50", **SMALL},
    "workers": {"fillfactor": "50", **SMALL},
}
NEW_STORAGE = {
    "queues": {"fillfactor": "70", **SMALL},
    "lanes": {"fillfactor": "50", **SMALL},
    "agent_usage": {"fillfactor": "70", **SMALL},
    "settlements": SMALL,
}
TABLES = ("quotes", "load_failures", "models", "agent_usage", "costs", "settlements", "lanes", "queues")


def upgrade() -> None:
    """Add the columns and tables; give queues their models; index what is ready by model and by age."""
    op.add_column("tasks", sa.Column("charged", sa.Double))
    for column in make_agent_columns():
        op.add_column("agents", column)
    for name, condition in AGENT_CHECKS.items():
        op.create_check_constraint(name, "agents", condition)
    for column in make_worker_columns():
        op.add_column("workers", column)
    for name, condition in WORKER_CHECKS.items():
        op.create_check_constraint(name, "workers", condition)
    op.add_column("agent_shares", sa.Column("in_flight", sa.Integer, server_default="0", nullable=False))
    op.add_column("pools", sa.Column("grants", sa.BigInteger, server_default="0", nullable=False))
    op.add_column(
        "pools", sa.Column("kinds", postgresql.ARRAY(sa.Text), server_default=sa.text("'{}'"), nullable=False)
    )
    op.add_column("pools", sa.Column("workers_digest", sa.Text, server_default="", nullable=False))
    _create_tables()
    for table, parameters in (OLD_STORAGE | NEW_STORAGE).items():
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{name} = {value}' for name, value in parameters.items())})")
    op.drop_index("tasks_ready", "tasks")
    ready = ["type", sa.text("coalesce(model, '')"), "agent_id", "priority", "seq"]
    op.create_index("tasks_ready", "tasks", ready, postgresql_where=READY)
    op.create_index("tasks_oldest", "tasks", ["type", "priority", "seq"], postgresql_where=READY)
    later = sa.text("queue_state IN ('scheduled', 'blocked')")
    op.create_index(
        "tasks_later", "tasks", ["agent_id", "type", sa.text("coalesce(model, '')"), "priority"], postgresql_where=later
    )
    op.execute(
        "INSERT INTO queues (type, model, agent_id, priority)"
        " SELECT type, coalesce(model, ''), agent_id, priority"
        " FROM tasks WHERE queue_state IS NOT NULL GROUP BY 1, 2, 3, 4"
    )


def _create_tables() -> None:
    op.create_table(
        "queues",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("type", "model", "agent_id")),
        sa.Column("priority", PRIORITY, primary_key=True),
        sa.Column("has_ready", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("listed", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("emptied_at", TIME),
    )
    op.create_index("queues_unlisted", "queues", ["type"], postgresql_where=sa.text("has_ready AND NOT listed"))
    op.create_index("queues_emptied", "queues", ["emptied_at"], postgresql_where=sa.text("NOT has_ready"))
    op.create_index("queues_agent", "queues", ["agent_id"])
    op.create_table(
        "lanes",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("pool", "type", "model", "agent_id")),
        sa.Column("priority", PRIORITY, primary_key=True),
        sa.Column("virtual_time", sa.Double, nullable=False),
        sa.Column("closed", sa.Text),
        sa.Column("passed_at", TIME),
    )
    is_open = sa.text("closed IS NULL")
    ordered = ["pool", "type", "model", "priority", "virtual_time"]
    op.create_index("lanes_open", "lanes", ordered, postgresql_where=is_open)
    op.create_index("lanes_closed", "lanes", ["pool", "closed"], postgresql_where=sa.text("closed IS NOT NULL"))
    op.create_index("lanes_agent", "lanes", ["agent_id", "pool"])
    passed = sa.text("passed_at IS NOT NULL")
    op.create_index("lanes_passed", "lanes", ["pool", "type", "model"], postgresql_where=passed)
    op.create_table(
        "settlements",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("pool", "type", "model", "agent_id")),
        sa.Column("released", sa.Integer, nullable=False),
        sa.Column("charged", sa.Double, nullable=False),
        sa.Column("cost", sa.Double, server_default="0", nullable=False),
        sa.Column("measured", sa.Integer, server_default="0", nullable=False),
        sa.Column("measured_cost", sa.Double, server_default="0", nullable=False),
        sa.Column("running_seconds", sa.Double, server_default="0", nullable=False),
        sa.Column("seconds", sa.Double, server_default="0", nullable=False),
        sa.Column("tokens", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("peak_seconds", sa.Double, server_default="0", nullable=False),
        sa.Column("peak_tokens", sa.BigInteger, server_default="0", nullable=False),
    )
    op.create_table(
        "costs",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("pool", "type", "model", "agent_id")),
        sa.Column("samples", sa.BigInteger, nullable=False),
        *(
            sa.Column(name, sa.Double, nullable=False)
            for name in ("cost", "running_seconds", "peak_seconds", "peak_tokens")
        ),
        sa.Column("updated_at", TIME, server_default=sa.func.now(), nullable=False),
    )
    op.create_table(
        "agent_usage",
        sa.Column("minute", TIME, primary_key=True),
        sa.Column("pool", sa.Text, primary_key=True),
        sa.Column("agent_id", sa.Text, primary_key=True),
        sa.Column("tasks", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
    )
    op.create_index("agent_usage_agent", "agent_usage", ["agent_id", "minute"])
    op.create_table(
        "models",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("weight_bytes", sa.BigInteger),
        sa.Column("held_bytes", sa.BigInteger),
        sa.Column("updated_at", TIME, server_default=sa.func.now(), nullable=False),
    )
    op.create_table(
        "load_failures",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("worker_name", sa.Text, primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("failed_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("retry_at", TIME, nullable=False),
    )
    op.create_table(
        "quotes",
        sa.Column("task_id", sa.Uuid, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("made_at", TIME, server_default=sa.func.now(), nullable=False),
        *(
            sa.Column(name, sa.Double, nullable=False)
            for name in ("wait_p50_seconds", "wait_p90_seconds", "engine_seconds")
        ),
    )
    op.create_index("quotes_made", "quotes", ["made_at"])


def downgrade() -> None:
    """Drop what was added, and make the queues without models from the tasks that wait."""
    op.execute(
        "INSERT INTO agent_queues (type, agent_id, priority)"
        " SELECT type, agent_id, priority FROM tasks WHERE queue_state IS NOT NULL GROUP BY 1, 2, 3"
        " ON CONFLICT (type, agent_id, priority) DO UPDATE SET has_ready = true"
    )
    op.drop_index("tasks_later", "tasks")
    op.drop_index("tasks_oldest", "tasks")
    op.drop_index("tasks_ready", "tasks")
    op.create_index("tasks_ready", "tasks", ["type", "agent_id", "priority", "seq"], postgresql_where=READY)
    for table in TABLES:
        op.drop_table(table)
    for table, parameters in OLD_STORAGE.items():
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(parameters)})")
    for name in ("workers_digest", "kinds", "grants"):
        op.drop_column("pools", name)
    op.drop_column("agent_shares", "in_flight")
    for name in WORKER_CHECKS:
        op.drop_constraint(name, "workers")
    for column in make_worker_columns():
        op.drop_column("workers", column.name)
    for name in AGENT_CHECKS:
        op.drop_constraint(name, "agents")
    for column in make_agent_columns():
        op.drop_column("agents", column.name)
    op.drop_column("tasks", "charged")
