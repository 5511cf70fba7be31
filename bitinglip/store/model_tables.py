"""The tables of models: what is registered, which node has a copy, and the nodes themselves."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from bitinglip.store.columns import TIME, metadata

# A row without a source is no registered model: a worker has noted what it takes.
models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("weight_bytes", BigInteger),
    Column("held_bytes", BigInteger),
    Column("updated_at", TIME, nullable=False, server_default=func.now()),
    Column("source", Text),
    Column("type", Text),
    Column("repo", Text),
    Column("revision", Text),
    Column("commit_hash", Text),
    Column("files", JSONB),
    Column("total_bytes", BigInteger),
    Column("parameters", BigInteger),
    Column("dtype", Text),
    Column("architecture", Text),
    Column("context_tokens", Integer),
    Column("kv_bytes_per_token", BigInteger),
    Column("licence", Text),
    Column("tags", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("removing", Boolean, nullable=False, server_default=false()),
    Column("download_task_id", Uuid),
    Column("error", JSONB),
    Column("registered_at", TIME),
    Column("last_used_at", TIME),
    CheckConstraint("source IN ('hub', 'folder', 'bundled')", name="models_source_known"),
)

model_copies = Table(
    "model_copies",
    metadata,
    Column("model", Text, ForeignKey("models.name", ondelete="CASCADE"), primary_key=True),
    Column("node", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("commit_hash", Text, nullable=False),
    Column("done_bytes", BigInteger, nullable=False, server_default="0"),
    Column("verified_at", TIME),
    Column("last_used_at", TIME, nullable=False, server_default=func.now()),
    Column("updated_at", TIME, nullable=False, server_default=func.now()),
    CheckConstraint("state IN ('downloading', 'verifying', 'available', 'damaged')", name="model_copies_state_known"),
    Index("model_copies_node", "node"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("store_id", Uuid, nullable=False),
    Column("store_folder", Text, nullable=False),
    Column("peer_url", Text),
    Column("disk_bytes", BigInteger, nullable=False),
    Column("free_bytes", BigInteger, nullable=False),
    Column("budget_bytes", BigInteger),
    Column("seen_at", TIME, nullable=False, server_default=func.now()),
)

cluster_keys = Table(
    "cluster_keys",
    metadata,
    Column("name", Text, primary_key=True),
    Column("secret", Text, nullable=False),
    Column("created_at", TIME, nullable=False, server_default=func.now()),
)
