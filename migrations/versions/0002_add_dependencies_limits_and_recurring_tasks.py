"""Add dependencies, limits, suspects, recurring tasks and daily reports.

Expand. Safe while old workers run: every new column has a default that means what was before. Writers to tasks wait for
two scans of it, because a half-done migration would be worse than the second that they take a million rows. The
downgrade drops the columns and tables, and ends the agents' own registrations.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)
PRIORITY = postgresql.ENUM("critical", "high", "medium", "low", name="task_priority", create_type=False)


def upgrade() -> None:
    """Add the columns, the tables, and then the indexes."""
    op.add_column("tasks", sa.Column("suspect", sa.Boolean, server_default=sa.false(), nullable=False))
    op.add_column("tasks", sa.Column("has_children", sa.Boolean, server_default=sa.false(), nullable=False))
    op.add_column("tasks", sa.Column("ttl_seconds", sa.Integer))
    op.add_column("agents", sa.Column("max_priority", PRIORITY))
    op.add_column("agents", sa.Column("max_queued", sa.Integer))
    op.create_check_constraint("agents_max_queued_bounded", "agents", "max_queued BETWEEN 1 AND 10000000")
    op.add_column("workers", sa.Column("engine_up", sa.Boolean, server_default=sa.true(), nullable=False))
    op.add_column("workers", sa.Column("problem", sa.Text))
    op.drop_constraint("workers_state_known", "workers")
    op.create_check_constraint("workers_state_known", "workers", "state IN ('ready', 'pulling', 'draining', 'gone')")
    op.create_table(
        "dependencies",
        sa.Column("child_id", sa.Uuid, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("parent_id", sa.Uuid, sa.ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
        sa.CheckConstraint("child_id <> parent_id", name="dependencies_not_on_itself"),
    )
    op.create_index("dependencies_parent", "dependencies", ["parent_id"])
    op.create_table(
        "recurring",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("last_due_at", TIME, nullable=False),
        sa.Column("last_task_id", sa.Uuid),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 100", name="recurring_name_length"),
    )
    op.create_table(
        "agent_reports",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("agent_id", sa.Text, primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("submitted", "completed", "failed", "cancelled", "prompt_tokens", "completion_tokens")
        ),
        sa.Column("engine_seconds", sa.Double, nullable=False),
        sa.Column("wait_p50_seconds", sa.Double),
        sa.Column("wait_p95_seconds", sa.Double),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
    )
    op.create_index(
        "tasks_expiry",
        "tasks",
        ["expires_at"],
        postgresql_where=sa.text("queue_state IS NOT NULL AND started_at IS NULL"),
    )
    op.create_index(
        "tasks_settle", "tasks", ["id"], postgresql_where=sa.text("has_children AND finished_at IS NOT NULL")
    )


def downgrade() -> None:
    """Drop what was added; agents that took tasks themselves are gone, and a sweep frees what they held."""
    op.execute("UPDATE workers SET state = 'gone' WHERE state = 'pulling'")
    op.drop_index("tasks_settle", "tasks")
    op.drop_index("tasks_expiry", "tasks")
    op.drop_table("agent_reports")
    op.drop_table("recurring")
    op.drop_table("dependencies")
    op.drop_constraint("workers_state_known", "workers")
    op.create_check_constraint("workers_state_known", "workers", "state IN ('ready', 'draining', 'gone')")
    op.drop_column("workers", "problem")
    op.drop_column("workers", "engine_up")
    op.drop_constraint("agents_max_queued_bounded", "agents")
    op.drop_column("agents", "max_queued")
    op.drop_column("agents", "max_priority")
    for name in ("ttl_seconds", "has_children", "suspect"):
        op.drop_column("tasks", name)
