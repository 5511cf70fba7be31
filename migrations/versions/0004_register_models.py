"""Register models: what is there, which node has a copy, and where nodes reach each other.

Expand. Safe while old workers run: they use the models that they find on their disk, and register none. The downgrade
forgets what was registered; the files stay, and `bitinglip model scan` finds them again.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

TIME = sa.DateTime(timezone=True)
NO_TEXTS = sa.text("'{}'")
TEXTS = ("source", "type", "repo", "revision", "commit_hash", "dtype", "architecture", "licence")
NUMBERS = ("total_bytes", "parameters", "kv_bytes_per_token")


def make_model_columns() -> list[sa.Column[object]]:
    return [
        *(sa.Column(name, sa.Text) for name in TEXTS),
        *(sa.Column(name, sa.BigInteger) for name in NUMBERS),
        sa.Column("files", postgresql.JSONB),
        sa.Column("context_tokens", sa.Integer),
        sa.Column("tags", postgresql.ARRAY(sa.Text), server_default=NO_TEXTS, nullable=False),
        sa.Column("pinned", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("removing", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("download_task_id", sa.Uuid),
        sa.Column("error", postgresql.JSONB),
        sa.Column("registered_at", TIME),
        sa.Column("last_used_at", TIME),
    ]


def upgrade() -> None:
    """Add the columns of registered models, and the tables of copies, nodes and the cluster's key."""
    for column in make_model_columns():
        op.add_column("models", column)
    op.create_check_constraint("models_source_known", "models", "source IN ('hub', 'folder', 'bundled')")
    op.add_column("workers", sa.Column("pulls", postgresql.ARRAY(sa.Text), server_default=NO_TEXTS, nullable=False))
    op.create_table(
        "model_copies",
        sa.Column("model", sa.Text, sa.ForeignKey("models.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("node", sa.Text, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("state", "folder", "commit_hash")),
        sa.Column("done_bytes", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("verified_at", TIME),
        sa.Column("last_used_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", TIME, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint(
            "state IN ('downloading', 'verifying', 'available', 'damaged')", name="model_copies_state_known"
        ),
    )
    op.create_index("model_copies_node", "model_copies", ["node"])
    op.create_table(
        "nodes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("store_id", sa.Uuid, nullable=False),
        sa.Column("store_folder", sa.Text, nullable=False),
        sa.Column("peer_url", sa.Text),
        sa.Column("disk_bytes", sa.BigInteger, nullable=False),
        sa.Column("free_bytes", sa.BigInteger, nullable=False),
        sa.Column("budget_bytes", sa.BigInteger),
        sa.Column("seen_at", TIME, server_default=sa.func.now(), nullable=False),
    )
    op.create_table(
        "cluster_keys",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False),
    )


def downgrade() -> None:
    """Drop what was added."""
    for table in ("cluster_keys", "nodes", "model_copies"):
        op.drop_table(table)
    op.drop_column("workers", "pulls")
    op.drop_constraint("models_source_known", "models")
    for column in make_model_columns():
        op.drop_column("models", column.name)
