"""Runs migrations on the connection it is given, inside its transaction."""

from __future__ import annotations

from alembic import context

from agent_memory.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
