"""Conversations, exchanges, answers, ratings and edits."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "owners",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("key_name", sa.Text, nullable=False),
        sa.Column("user_name", sa.String(128), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_owners"),
        sa.UniqueConstraint("key_name", "user_name", name="uq_owners_key_name_user_name"),
    )
    op.create_table(
        "conversations",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("owner_id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("consent", sa.Boolean, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("updated", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"),
        _reference("conversations", "owner_id", "owners"),
        sa.UniqueConstraint("owner_id", "name", name="uq_conversations_owner_id_name"),
    )
    op.create_table(
        "exchanges",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("conversation_id", sa.Integer, nullable=False),
        sa.Column("reply", sa.String(64), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("checkpoint", sa.Text, nullable=False),
        sa.Column("step", sa.Integer, nullable=True),
        sa.Column("lineage", sa.String(64), nullable=True),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_exchanges"),
        _reference("exchanges", "conversation_id", "conversations"),
        sa.UniqueConstraint("reply", name="uq_exchanges_reply"),
    )
    op.create_table(
        "choices",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("exchange_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("finish_reason", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_choices"),
        _reference("choices", "exchange_id", "exchanges"),
        sa.UniqueConstraint("exchange_id", "number", name="uq_choices_exchange_id_number"),
    )
    op.create_table(
        "ratings",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("choice_id", sa.Integer, nullable=False),
        sa.Column("value", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(64), nullable=True),
        sa.Column("comment", sa.Text, nullable=True),
        sa.Column("created", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ratings"),
        _reference("ratings", "choice_id", "choices"),
        sa.UniqueConstraint("choice_id", name="uq_ratings_choice_id"),
        sa.CheckConstraint("value IN (-1, 1)", name=op.f("ck_ratings_value")),
    )
    op.create_table(
        "edits",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("choice_id", sa.Integer, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_edits"),
        _reference("edits", "choice_id", "choices"),
        sa.UniqueConstraint("choice_id", name="uq_edits_choice_id"),
    )
    for table, column in (
        ("conversations", "updated"),
        ("exchanges", "conversation_id"),
        ("exchanges", "created"),
        ("ratings", "created"),
        ("edits", "created"),
    ):
        op.create_index(f"ix_{table}_{column}", table, [column])


def _reference(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")
