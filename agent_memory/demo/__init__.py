"""``agent-memory demo``: an agent inventories the machine it runs on, is killed half-way, and is asked about all of it."""
