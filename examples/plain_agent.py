"""Twelve lines of plain Python: what a tool said is remembered, however long ago it was, and across restarts."""

from agent_memory import Runtime

RECORD = "inventory-sync version: 4.1.7\ninventory-sync license: MIT"


def main(store: str = "./memory", model: str | None = None) -> str:
    """Remember a tool's output, ask about it, and return the answer."""
    with Runtime.load(model, store=store) as runtime, runtime.session("plain-agent") as session:
        session.append("tool", RECORD, name="registry")
        answer = session.reply("What is the version of inventory-sync?", max_new_tokens=32)
        for hit in session.last_recall.turns if session.last_recall else ():
            print(f"recalled turn {hit.turn} ({hit.role}), {hit.tokens_ago} tokens ago, from {hit.tier}")
    return answer


if __name__ == "__main__":
    print(main())
