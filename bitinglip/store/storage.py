"""How the tables that change with every task are stored, so that what is dead in them is soon used again.

A share of the rows is no measure here: a tenth of a million tasks is minutes of work, and a table of ten thousand lanes
is rewritten in a minute. The small tables are vacuumed after so many changes, at full speed, whenever autovacuum looks
(each `autovacuum_naptime`); the large ones after 2 % instead of 20 %.

A fill factor leaves room in each page for the new versions of its rows: those of `agent_shares`, `workers` and
`agent_usage` change no index then (HOT), those of the others stay near.
"""

_SMALL = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_cost_delay": "0",
    "autovacuum_analyze_scale_factor": "0.1",
}
_LARGE = {
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.02",
    "autovacuum_vacuum_cost_delay": "1",
}

STORAGE = {
    "tasks": {"fillfactor": "70", **_LARGE},
    "task_details": {"fillfactor": "80", **_LARGE},
    "attempts": _LARGE,
    "queues": {"fillfactor": "70", **_SMALL},
    "lanes": {"fillfactor": "50", **_SMALL},
    "agent_shares": {"fillfactor": "50", **_SMALL},
    "agent_usage": {"fillfactor": "70", **_SMALL},
    "workers": {"fillfactor": "50", **_SMALL},
    "settlements": _SMALL,
}
"""Storage parameters by table."""
