"""The tables by which agents share workers: queues and lanes, charges and costs, failures to load and quotes."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    Uuid,
    false,
    func,
    text,
    true,
)

from bitinglip.store.columns import PRIORITY, TIME, metadata

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
