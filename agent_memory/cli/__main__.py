"""``python -m agent_memory.cli``: the command, without its script being installed. Knows nothing else."""

from agent_memory.cli import main

main()
