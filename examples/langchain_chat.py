"""A LangChain chat model that never forgets: send the conversation as always; the Session takes what is new."""

from langchain_core.messages import AIMessage, HumanMessage

from langchain_agent_memory import ChatAgentMemory


def main(store: str = "./memory", model: str | None = None) -> list[AIMessage]:
    """Hold a conversation of two turns and return the answers."""
    chat = ChatAgentMemory(session_id="langchain-chat", store=store, model=model, max_tokens=32)
    conversation = chat.thread_messages("langchain-chat")  # what an earlier run of this script said
    answers = []
    for question in ("Note: inventory-sync version is 4.1.7", "What is the version of inventory-sync?"):
        conversation.append(HumanMessage(question))
        answers.append(chat.invoke(conversation))
        conversation.append(answers[-1])
    chat.close()
    return answers


if __name__ == "__main__":
    for answer in main():
        print(answer.text, answer.usage_metadata)
