"""What alembic runs: the steps on the connection that it is given, whose transaction is the caller's."""

from alembic import context

from megalm.feedback.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
