"""A LangGraph agent on one thread for three days, a new process each day; on day 3 it answers a question about day 1.

It prints the tokens that were in memory, that were appended, and that the model read: earlier days are not read again. Needs
langgraph and langgraph-checkpoint-sqlite. ``--day 2`` is one day alone.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from langchain_agent_memory import ChatAgentMemory

SERVICES = {
    "billing-api": {"port": "8417", "owner": "Maria Lind", "version": "4.1.7", "path": "/srv/billing/current"},
    "mail-relay": {"port": "2525", "owner": "Tom Okafor", "version": "0.9.12", "path": "/opt/relay"},
    "auth-gate": {"port": "9443", "owner": "Ines Duarte", "version": "12.0.3", "path": "/srv/auth"},
    "search-index": {"port": "7700", "owner": "Jan Novak", "version": "2.30.1", "path": "/var/lib/search"},
    "photo-store": {"port": "6061", "owner": "Aiko Mori", "version": "1.18.4", "path": "/mnt/photos"},
    "queue-worker": {"port": "5672", "owner": "Sam Reed", "version": "3.7.0", "path": "/opt/worker"},
    "report-cron": {"port": "8099", "owner": "Lea Brandt", "version": "0.4.25", "path": "/srv/reports"},
}

DAYS = {
    1: ["Look up billing-api.", "Look up mail-relay.", "Look up auth-gate."],
    2: ["Look up search-index.", "Look up photo-store.", "What is the owner of mail-relay?"],
    3: ["Look up queue-worker.", "Look up report-cron.", "What is the port of billing-api?"],
}


def lookup(name: str) -> str:
    """Look up a service."""
    return "\n".join(f"{name} {field}: {value}" for field, value in SERVICES[name].items())


def main(store: str = "./memory", model: str | None = None, day: int = 1) -> list[AIMessage]:
    """Live one day and return what the model said on it."""
    chat = ChatAgentMemory(store=store, model=model, max_tokens=48)
    with_tools = chat.bind_tools([lookup])

    def think(state: MessagesState) -> MessagesState:
        return {"messages": [with_tools.invoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("think", think).add_node("tools", ToolNode([lookup]))
    graph.add_edge(START, "think").add_conditional_edges("think", tools_condition).add_edge("tools", "think")
    thread: RunnableConfig = {"configurable": {"thread_id": "on-call"}}  # of the checkpointer, and the name of the Session
    said = []
    Path(store).mkdir(exist_ok=True)
    with SqliteSaver.from_conn_string(f"{store}/checkpoints.sqlite") as checkpointer:
        agent = graph.compile(checkpointer)
        for text in DAYS[day]:
            for update in agent.stream({"messages": [HumanMessage(text)]}, thread, stream_mode="updates"):
                said += update.get("think", {}).get("messages", [])
            print(f"day {day}: {text} {said[-1].text}\n       {usage(said[-1])}")
    chat.close()
    return said


def usage(message: AIMessage) -> str:
    """Where the tokens of a reply came from."""
    tokens = message.usage_metadata["input_token_details"] if message.usage_metadata else {}
    read = message.response_metadata["agent_memory"]["prefilled"]
    return f"{tokens.get('cache_read', 0):,} tokens in memory, {tokens.get('cache_creation', 0):,} appended, {read:,} read"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--day", type=int, choices=DAYS)
    if chosen := parser.parse_args().day:
        main(day=chosen)
    else:
        for number in DAYS:
            subprocess.run([sys.executable, __file__, "--day", str(number)], check=True)  # noqa: S603 - this very script
