"""Two agents share one Store and one loaded model, each in a namespace of its own: neither ever sees what the other was told.

Their conversations even have the same name, and both were told of a deploy-bot; each knows its own.
"""

from langchain_core.messages import AIMessage, HumanMessage

from langchain_agent_memory import ChatAgentMemory

THREAD = "ops"
TOLD = {
    "alice": ["Note: deploy-bot port is 8417", "Note: mail-relay owner is Ines Duarte"],
    "bob": ["Note: deploy-bot port is 60225", "Note: photo-store region is eu-north"],
}
QUESTION = "What is the port of deploy-bot?"


def say(chat: ChatAgentMemory, name: str, text: str) -> AIMessage:
    """The next turn of one agent's conversation, which is all in its namespace."""
    conversation = [*chat.thread_messages(THREAD, namespace=name), HumanMessage(text)]
    return chat.invoke(conversation, {"configurable": {"thread_id": THREAD, "memory_namespace": name}})


def main(store: str = "./memory", model: str | None = None) -> dict[str, str]:
    """Tell each agent its facts, ask both the same, and return their answers."""
    chat = ChatAgentMemory(store=store, model=model, max_tokens=32)
    for name, notes in TOLD.items():
        for note in notes:
            say(chat, name, note)
    answers: dict[str, str] = {name: say(chat, name, QUESTION).text for name in TOLD}
    for name, answer in answers.items():
        print(f"{name} asks {QUESTION!r} and hears {answer!r}. Its namespace holds:")
        for message in chat.thread_messages(THREAD, namespace=name):
            print(f"    {message.type}: {message.text}")
    chat.close()
    return answers


if __name__ == "__main__":
    main()
