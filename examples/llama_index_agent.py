"""A LlamaIndex FunctionAgent whose memory is a Session: it looks up packages that are installed here, and is asked about the first.

Run it again: a new process finds everything in memory, looks nothing up, and only answers. Needs llama-index-core.
"""

import asyncio
from importlib.metadata import distribution

from llama_index.core.agent.workflow import AgentOutput, FunctionAgent
from llama_index.core.tools import FunctionTool
from llama_index.llms.agent_memory import AgentMemory, AgentMemoryBuffer

PACKAGES = ("alembic", "numpy", "tqdm", "jinja2", "typer")


def lookup(name: str) -> str:
    """Look up a package."""
    found = distribution(name)
    files = [f"{file} {file.size or 0}" for file in (found.files or [])[:6]]
    return "\n".join([f"{name} version: {found.version}", f"{name} summary: {found.metadata['Summary']}", *files])


async def converse(memory: AgentMemoryBuffer) -> list[AgentOutput]:
    """Look up every package, unless that was done already, and ask about the first."""
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(lookup)], llm=memory.llm)
    known = any(message.role == "tool" for message in memory.get_all())
    said: list[AgentOutput] = []
    for text in [*(f"Look up {name}." for name in PACKAGES if not known), f"What is the version of {PACKAGES[0]}?"]:
        answer: AgentOutput = await agent.run(text, memory=memory)
        usage = (answer.raw or {})["usage"]
        print(f"{text} {answer.response.content}")
        print(f"  {usage['cache_read_tokens']:,} tokens in memory, {usage['cache_creation_tokens']:,} appended")
        said.append(answer)
    return said


def main(store: str = "./memory", model: str | None = None) -> list[AgentOutput]:
    """Open the memory, hold the conversation, and return what the agent said."""
    llm = AgentMemory(store=store, model=model, max_tokens=48)
    memory = AgentMemoryBuffer.from_defaults(llm=llm, session_id="llama-index-packages")
    try:
        return asyncio.run(converse(memory))
    finally:
        llm.close()


if __name__ == "__main__":
    main()
