"""When consent was said, what was deleted lately, and an index for the list of an owner's conversations."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the column, the table and the index."""
    op.add_column("conversations", sa.Column("consent_said", _TIME, nullable=True))
    op.create_table(
        "deletions",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deletions"),
        sa.UniqueConstraint("what", name="uq_deletions_what"),
    )
    op.create_index("ix_conversations_owner_id_updated_id", "conversations", ["owner_id", "updated", "id"])
