"""A LlamaIndex model that never forgets, over agent_memory.

Knows LlamaIndex's interface; memory, models and Sessions are agent_memory's. Importing it loads neither torch nor a model.
"""

from llama_index.llms.agent_memory.base import AgentMemory

__all__ = ["AgentMemory"]
