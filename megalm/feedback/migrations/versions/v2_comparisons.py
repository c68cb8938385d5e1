"""Comparisons of two answers, and which reply an exchange follows."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Make the table and the column."""
    op.add_column("exchanges", sa.Column("parent", sa.String(64), nullable=True))
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("a_id", sa.Integer, nullable=False),
        sa.Column("b_id", sa.Integer, nullable=False),
        sa.Column("pick", sa.String(64), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        *(
            sa.ForeignKeyConstraint(
                [column], ["choices.id"], name=f"fk_comparisons_{column}", ondelete="CASCADE"
            )
            for column in ("a_id", "b_id")
        ),
        sa.UniqueConstraint("a_id", "b_id", name="uq_comparisons_a_id_b_id"),
        sa.CheckConstraint("pick IN ('a', 'b', 'tie', 'neither')", name=op.f("ck_comparisons_pick")),
        sa.CheckConstraint("a_id < b_id", name=op.f("ck_comparisons_order")),
    )
    for column in ("b_id", "created"):
        op.create_index(f"ix_comparisons_{column}", "comparisons", [column])
