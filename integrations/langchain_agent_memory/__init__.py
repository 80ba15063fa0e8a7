"""LangChain models that never forget: a chat model and a plain language model over agent_memory.

Knows LangChain's interfaces; memory, models and Sessions are agent_memory's. Importing it loads neither torch nor a model.
"""

from langchain_agent_memory.chat_model import ChatAgentMemory
from langchain_agent_memory.llm import AgentMemoryLLM

__all__ = ["AgentMemoryLLM", "ChatAgentMemory"]
