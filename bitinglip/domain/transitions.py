"""Which status may follow which. The store's statements obey it; its tests walk it.

pending ──claim──► in_progress ──► completed | failed | cancelled
▲ │                  │
│ └─cancel──► cancelled
└────retry, rescue───┘
"""

from bitinglip.domain.task import Status

NEXT: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.IN_PROGRESS, Status.CANCELLED, Status.FAILED}),
    Status.IN_PROGRESS: frozenset({Status.PENDING, Status.COMPLETED, Status.FAILED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}
