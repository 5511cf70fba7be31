"""What the tables are made of: their metadata, and the types that several use."""

from sqlalchemy import DateTime, Enum, MetaData

from bitinglip.domain.task import Priority, QueueState, Status

metadata = MetaData()


def _enum(kind: type[Status] | type[QueueState] | type[Priority], name: str) -> Enum:
    return Enum(
        kind, name=name, values_callable=lambda members: [member.value for member in members], metadata=metadata
    )


STATUS = _enum(Status, "task_status")
QUEUE_STATE = _enum(QueueState, "task_queue_state")
PRIORITY = _enum(Priority, "task_priority")
TIME = DateTime(timezone=True)
