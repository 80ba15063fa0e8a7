"""Token batches for training and scoring: dialogues rendered, cut to length, with the positions that count.

Knows the chat format's token ids. It knows no model.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from agent_memory.pocket import dialogues

IGNORE = -100
BLOCK = 32
LONGEST = 1536
"""Tokens of a dialogue whose recall is imitated."""
NEAR = 64
"""Tokens of what was told last that are shown as they stand."""


@dataclass
class Sequence:
    """One rendered dialogue: ids, labels (IGNORE where nothing is learned), and the span of every scored turn."""

    ids: list[int]
    labels: list[int]
    spans: list[tuple[int, int, str]] = field(default_factory=list)


@dataclass
class Recalled:
    """A dialogue longer than the window, and which of its tokens memory would show: ascending, at most a window of them."""

    ids: list[int]
    labels: list[int]
    keep: list[int]


class Renderer:
    """Turns messages into token ids; parts are tokenised one by one, which equals the whole since each ends in a special."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        inner = tokenizer.backend_tokenizer
        self.inner = inner
        self.end = tokenizer.eos_token_id

    def text(self, script: dialogues.Script) -> list[tuple[str, str]]:
        """Each message as the template's text and its kind: empty when it is not the assistant's."""
        head = [("<|system|>" + self._head(script) + "<|end|>", "")] if self._head(script) else []
        body = [self._one(at, message, script) for at, message in enumerate(script.messages) if message["role"] != "system"]
        return head + body

    def _head(self, script: dialogues.Script) -> str:
        lines = [message["content"] for message in script.messages if message["role"] == "system"]
        if script.tools:
            lines.append("Tools:")
        for tool in script.tools:
            function = tool["function"]
            names = ", ".join(function["parameters"]["properties"])
            lines.append(f"{function['name']}({names}): {function['description']}")
        return "\n".join(lines)

    def _one(self, at: int, message: dialogues.Message, script: dialogues.Script) -> tuple[str, str]:
        role, content = message["role"], message["content"]
        if role == "tool":
            return f"<|tool|>{message['name']}\n{content}<|end|>", ""
        if role == "user":
            return f"<|user|>{content}<|end|>", ""
        for call in message.get("tool_calls", []):
            function = call["function"]
            ((key, value),) = function["arguments"].items()
            start = '<tool_call>{"name": "' + function["name"]
            content += f'{start}", "arguments": {{"{key}": "{value}"}}}}</tool_call>'
        return f"<|assistant|>{content}<|end|>", script.kinds.get(at, "close")

    def sequence(self, script: dialogues.Script, length: int) -> Sequence:
        """The dialogue as ids, cut at `length`; a turn that is cut is not scored."""
        out = Sequence([], [])
        for text, kind in self.text(script):
            ids = self.inner.encode(text, add_special_tokens=False).ids
            start = len(out.ids)
            out.ids += ids
            # The role marker is given; what follows it is the assistant's to say.
            out.labels += [IGNORE, *ids[1:]] if kind else [IGNORE] * len(ids)
            if kind and len(out.ids) <= length:
                out.spans.append((start + 1, len(out.ids), kind))
        out.ids, out.labels = out.ids[:length], out.labels[:length]
        return out

    def _marks(self, script: dialogues.Script) -> tuple[int, int, set[int]]:
        """Where the head ends, where what was told ends, and the blocks that hold lines asked about."""
        parts = self.text(script)
        heads = len(parts) - sum(message["role"] != "system" for message in script.messages)
        told = heads + sum(message["role"] != "system" for message in script.messages[: script.told])
        at, head, needed = 0, 0, set()
        for index, (text, _) in enumerate(parts[:told]):
            encoded = self.inner.encode(text, add_special_tokens=False)
            for line in script.needed:
                start = text.find(line)
                if start >= 0:
                    tokens = [encoded.char_to_token(char) for char in (start, start + len(line) - 1)]
                    first, last = (at + token for token in tokens if token is not None)
                    needed |= set(range(first // BLOCK, last // BLOCK + 1))
            at += len(encoded.ids)
            head = at if index < heads else head
        return head, at, needed

    def gapped(self, script: dialogues.Script, length: int, rng: random.Random) -> Sequence:
        """As `sequence`, with whole blocks of what was told left out at random, as in recall: the order stays, and so
        does every line that is asked about."""
        whole = self.sequence(script, 1 << 30)
        head, told, needed = self._marks(script)
        free = [block for block in range(-(-head // BLOCK), told // BLOCK) if block not in needed]
        surplus = max(0, len(whole.ids) - length + BLOCK - 1) // BLOCK
        count = min(len(free), max(surplus, round(len(free) * rng.random() * 0.7)))
        gone = set(rng.sample(free, count))
        keep = [at for at in range(len(whole.ids)) if at // BLOCK not in gone]
        where = {at: new for new, at in enumerate(keep)}
        out = Sequence([whole.ids[at] for at in keep][:length], [whole.labels[at] for at in keep][:length])
        for start, stop, kind in whole.spans:
            if start in where and stop - 1 in where and where[stop - 1] < length:
                out.spans.append((where[start], where[stop - 1] + 1, kind))
        return out

    def recalled(self, script: dialogues.Script, length: int) -> Recalled:
        """As recall shows a long dialogue: its head, the last of what was told, every line that is asked about, and beside them
        the blocks that are most like what is asked, which are the ones that mislead."""
        whole = self.sequence(script, LONGEST)
        _, told, needed = self._marks(script)
        told = min(told, len(whole.ids))
        tail = max(told - told % BLOCK - NEAR, BLOCK) if told >= NEAR + 2 * BLOCK else BLOCK
        room = (length - BLOCK - (len(whole.ids) - tail)) // BLOCK
        asked = [self.inner.encode(line, add_special_tokens=False).ids for line in script.needed]
        blocks = range(1, tail // BLOCK)
        likeness = _likeness([set(whole.ids[at * BLOCK : at * BLOCK + BLOCK]) for at in blocks], [set(ids) for ids in asked])
        order = sorted(blocks, key=lambda at: (at not in needed, -likeness[at - 1]))
        shown = sorted(order[: max(0, room)])
        keep = [*range(min(BLOCK, len(whole.ids))), *(at * BLOCK + i for at in shown for i in range(BLOCK)), *range(tail, len(whole.ids))]
        return Recalled(whole.ids, whole.labels, keep[:length])


def _likeness(blocks: list[set[int]], asked: list[set[int]]) -> list[float]:
    """For each block, the most it shares with any line that is asked about; a token counts the less the more blocks have it."""
    spread = Counter(token for block in blocks for token in block)
    return [max((sum(1 / spread[token] for token in block & line) for line in asked), default=0.0) for block in blocks]


def collate_recalled(items: list[Recalled], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids ``[B, L]``, the tokens shown ``[B, K]``, and the labels of those, padded on the right."""
    ids = torch.full((len(items), max(len(item.ids) for item in items)), pad)
    keep = torch.zeros((len(items), max(len(item.keep) for item in items)), dtype=torch.long)
    labels = torch.full(keep.shape, IGNORE)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        keep[row, : len(item.keep)] = torch.tensor(item.keep)
        labels[row, : len(item.keep)] = torch.tensor(item.labels)[item.keep]
    return ids, keep, labels


def collate(sequences: list[Sequence], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, padded on the right."""
    length = max(len(item.ids) for item in sequences)
    ids = torch.full((len(sequences), length), pad)
    labels = torch.full((len(sequences), length), IGNORE)
    for row, item in enumerate(sequences):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        labels[row, : len(item.labels)] = torch.tensor(item.labels)
    return ids, labels


def copies(rng: random.Random, count: int, length: int, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The dense copy task: segments of random tokens, later repeated; every repeated token but the first counts."""
    ids = torch.empty(count, length, dtype=torch.long)
    labels = torch.full((count, length), IGNORE)
    for row in range(count):
        half = length // 2
        tokens = [rng.randrange(low, high) for _ in range(half)]
        cuts = sorted(rng.sample(range(4, half - 4), max(1, half // 24)))
        parts = [range(a, b) for a, b in zip([0, *cuts], [*cuts, half], strict=True)]
        rng.shuffle(parts)
        order = [at for part in parts for at in part]
        ids[row] = torch.tensor((tokens + [tokens[at] for at in order] + [0])[:length])
        at = half
        for part in parts:
            labels[row, at + 1 : at + len(part)] = ids[row, at + 1 : at + len(part)]
            at += len(part)
    return ids, labels
