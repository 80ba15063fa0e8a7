"""Messages to token ids and back, for any tokenizer with a chat template.

Knows templates and tokenizers; it does not know models, memory or the Store. Nothing here imports torch or transformers.
"""

from agent_memory.chat.format import ChatFormat
from agent_memory.chat.hashing import root
from agent_memory.chat.reply import ParsedReply
from agent_memory.chat.stream import split_stream
from agent_memory.chat.text import clean_text

__all__ = ["ChatFormat", "ParsedReply", "clean_text", "root", "split_stream"]
