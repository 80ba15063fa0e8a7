"""LlamaIndex models and a memory that never forget, over agent_memory.

Knows LlamaIndex's interfaces; memory, models and Sessions are agent_memory's. Importing it loads neither torch nor a model.
"""

from llama_index.llms.agent_memory.base import AgentMemory, AgentMemoryCustomLLM
from llama_index.llms.agent_memory.memory import AgentMemoryBuffer

__all__ = ["AgentMemory", "AgentMemoryBuffer", "AgentMemoryCustomLLM"]
