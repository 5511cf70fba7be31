"""Tell artifact stores apart: which one each worker sees.

Expand. Safe while old workers run: they name none, and are warned of none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the id of the store that a worker sees."""
    op.add_column("workers", sa.Column("artifact_store", sa.Uuid))


def downgrade() -> None:
    """Drop what was added."""
    op.drop_column("workers", "artifact_store")
