"""A LlamaIndex model that never forgets: send the conversation as always; the Session takes what is new."""

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.llms.agent_memory import AgentMemory


def main(store: str = "./memory", model: str | None = None) -> list[ChatResponse]:
    """Hold a conversation of two turns and return the answers."""
    llm = AgentMemory(session_id="llama-index-chat", store=store, model=model, max_tokens=32)
    conversation = llm.session_messages()  # what an earlier run of this script said
    answers = []
    for question in ("Note: inventory-sync version is 4.1.7", "What is the version of inventory-sync?"):
        conversation.append(ChatMessage(role="user", content=question))
        answers.append(llm.chat(conversation))
        conversation.append(answers[-1].message)
    llm.close()
    return answers


if __name__ == "__main__":
    for answer in main():
        print(answer.message.content, answer.additional_kwargs["cache_read_tokens"], "tokens were in memory")
