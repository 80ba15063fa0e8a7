"""A LangChain agent looks up packages that are installed here, and is then asked what its first tool call returned.

The conversation is longer than the model's window by then; what was recalled for the answer is printed. Needs langchain.
"""

from importlib.metadata import distribution

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from langchain_agent_memory import ChatAgentMemory

PACKAGES = ("alembic", "numpy", "tqdm", "jinja2", "typer")


def lookup(name: str) -> str:
    """Look up a package."""
    found = distribution(name)
    files = [f"{file} {file.size or 0}" for file in (found.files or [])[:6]]
    return "\n".join([f"{name} version: {found.version}", f"{name} summary: {found.metadata['Summary']}", *files])


def main(store: str = "./memory", model: str | None = None) -> AIMessage:
    """Look up every package, ask about the first, and return the answer."""
    chat = ChatAgentMemory(store=store, model=model, max_tokens=48)
    agent = create_agent(chat, [lookup], checkpointer=InMemorySaver())
    thread: RunnableConfig = {"configurable": {"thread_id": "packages"}}  # of the checkpointer, and the name of the Session
    chat.delete_thread("packages")  # the checkpointer forgets when the process ends, so the Session begins anew too
    for text in [*(f"Look up {name}." for name in PACKAGES), f"What is the version of {PACKAGES[0]}?"]:
        messages = agent.invoke({"messages": [HumanMessage(text)]}, thread)["messages"]
        print(f"{text} {messages[-1].text}")
    answer: AIMessage = messages[-1]
    for turn in answer.response_metadata["agent_memory"]["recalled"]:
        text = messages[turn["turn"] - 1].text  # turn 0 is the head, with the tool's description
        share = "" if turn["score"] is None else f", {turn['score']:.1%} of the attention"  # kernels on a GPU give none
        print(f"  recalled {turn['role']} turn {turn['turn']}, {turn['tokens_ago']:,} tokens ago{share}: {text[:50]!r}")
    chat.close()
    return answer


if __name__ == "__main__":
    main()
