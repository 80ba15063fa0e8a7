"""Makes keys and values for a Session's tokens, and replies from them.

Knows models, methods and the grid of query groups; does not know text, roles or turns. What it keeps is a function of the token
sequence alone: beyond the attended set, tokens of a group that is not whole yet, and of a reply that is still being made, are
provisional. They are forgotten and made again from the committed tokens, so no cut of the text into appends changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from agent_memory_kernels import PagedOperations, operations

from .attention.evidence import Evidence
from .attention.methods import Method
from .attention.recent_queries import RecentQueries
from .attention.shares import AttentionShares
from .attention.step import MemoryStep
from .attention.trace import Trace
from .layer_step import LayerStep
from .memory.block import BlockSource
from .memory.recounting import counted, take_counts, twin_to_count
from .memory.session_kv import SessionKV
from .model.attach import Attachment
from .model.decode import FinishReason, decode
from .paged_reply import PagedReply
from .types import GenerationRequest, Piece

Logits = Literal["all", "last", "none"]
Progress = Callable[[int], None]

CHUNK_TOKENS = 256
"""Tokens of one forward, on an absolute grid; a compute detail that no result depends on."""


@dataclass(slots=True)
class Counters:
    """What the engine has done, for tests and benchmarks: times are never asserted, these are.

    Attributes:
        prefilled, decoded: tokens fed.
        forwards: of the model.
        traced: tokens of replies, and of texts that are scored: those the others count.
        keys_scored: key vectors scored to choose, over all layers and KV heads.
        attended: keys attended to, over all layers.
    """

    prefilled: int = 0
    decoded: int = 0
    forwards: int = 0
    traced: int = 0
    keys_scored: int = 0
    attended: int = 0


class MemoryEngine:
    """One Session's forward passes.

    Args:
        attachment: the attached model.
        tokenizer: its tokenizer, for decoding text.
        method: which keys take part.
        kv: where they are kept.
        tokens: committed token ids ``tokens(start, stop)``.
        saved: called after each forward with the number of final tokens, to write what is due.
        pages: operations replies are decoded with on pages; None: torch decodes them, layer by layer.
        attention_shares: sum the attention of replies; those decoded on pages have none, since kernels give no weights.
    """

    def __init__(
        self,
        attachment: Attachment,
        tokenizer: Any,
        method: Method,
        kv: SessionKV,
        tokens: Callable[[int, int], Tensor],
        saved: Callable[[int], None],
        pages: PagedOperations | None = None,
        attention_shares: bool = False,
    ) -> None:
        self._attachment, self._tokenizer, self.method, self.kv = attachment, tokenizer, method, kv
        self._tokens, self._saved = tokens, saved
        self._ops = operations()
        self._recent = RecentQueries()
        self._evidence: Evidence | None = None  # takes what is looked at while a message is read for the first time
        self._brought: Tensor | None = None  # Blocks that stand near while it is answered, int64 [b]
        self.replies = None if pages is None else PagedReply(attachment, kv, method, pages)
        self._attention_shares = attention_shares
        self.counters = Counters()
        self.final = self.floor(kv.length)
        self._chunk = CHUNK_TOKENS if method.sizes is None else max(CHUNK_TOKENS, method.sizes.group)

    def catch_up(self, count: int, progress: Progress | None = None) -> None:
        """Make the KV of committed tokens ``[0, count)``; those already final are not touched.

        Args:
            count: committed tokens of the Session.
            progress: told the number of tokens done after each forward.
        """
        if self.kv.length == count and self.final == self.floor(count):
            return
        self._back_to(self.final)
        self._feed(self._tokens(self.final, count), None, "none", progress)

    def generate(self, count: int, request: GenerationRequest, trace: Trace, **hooks: Any) -> Generator[Piece, None, FinishReason]:
        """Reply after ``count`` committed tokens; the reply's own KV is forgotten when the iterator ends.

        Args:
            count: committed tokens.
            request: prompt to feed first, sampling, ends.
            trace: counts what was recalled, and takes the attention of each forward that a token of the reply is chosen from.
            hooks: ``processors``, ``stopping``, ``streamer`` and ``cancelled`` of :func:`agent_memory.model.decode.decode`.

        Returns:
            (as the generator's value) why it ended: ``stop``, ``length`` or ``cancelled``.
        """
        start = self._start(count, request)
        if self.final // self._chunk != (count + len(request.prompt) - 1) // self._chunk:
            self.catch_up(start)  # more than one forward: what is left for the last is the prompt
        first = min(self.final, start)
        self._back_to(first)
        fed = torch.cat([self._tokens(first, count), torch.tensor(request.prompt, dtype=torch.int64)])
        if self._attention_shares and self.replies is None:
            trace.shares = AttentionShares(count, self._attachment.device)

        def next_logits(token: int | None) -> Tensor:
            if token is None:
                self._recent.forget()  # a reply is the same whether the tokens before it were fed just now or long ago
                unread = self._focus(fed, first, start, request)
                logits = self._feed(unread, trace, "last", None, since=start)
                self.final = self.floor(start)
                if self.replies is not None:
                    self.replies.open(self._recent, request.max_new_tokens)
            else:
                self.counters.decoded += 1
                logits = self._decoded(token, trace)
            if logits is None:
                raise RuntimeError("the forward made no logits")
            return logits.reshape(-1)

        try:
            history = self._tokens(start, count).tolist()
            return (yield from decode(next_logits, self._tokenizer, request, history=history, **hooks))
        finally:
            self._brought = None
            if self.replies is not None:
                self.replies.close()
            if not self.kv.dropped:  # in a cycle of garbage the Session may go before its reply
                self.kv.truncate(min(start, self.kv.length))
                self.final = min(self.final, self.floor(start))

    def _focus(self, fed: Tensor, first: int, start: int, request: GenerationRequest) -> Tensor:
        """Read a message once, to see what it is about: that is near when it is read again, and while it is answered.

        Args:
            fed: tokens from ``first`` on.
            start: where the group begins that the tokens before the reply break off in; those before it are final.
            request: says where the message begins. Of a message that began in earlier groups the last of these is heard, too.

        Returns:
            The tokens that are left to be read.
        """
        focus, sizes, asked = self.method.focus, self.method.sizes, request.asked
        stop = first + len(fed)
        if focus is None or not focus.blocks or sizes is None or asked is None or stop <= focus.beyond:
            return fed
        self._evidence = Evidence(asked)
        try:
            if asked < start == first and start - sizes.group >= (self.method.attended or 0):
                self._read_again(start - sizes.group, start)
            self._feed(fed, Trace(), "none", None, since=start)
            self._brought = self._evidence.strongest(focus.blocks, max(0, stop - focus.reach) // self.kv.layout.block_tokens)
        finally:
            self._evidence = None
        self.kv.truncate(start)
        self._recent.forget()
        return fed[start - first :]

    def _read_again(self, start: int, stop: int) -> None:
        """Read tokens ``[start, stop)`` once more on a twin, to see what they look at."""
        twin = self.kv.fork(start, self.kv.source)
        try:
            again = MemoryEngine(self._attachment, self._tokenizer, self.method, twin, self._tokens, lambda final: None)
            again._evidence = self._evidence
            again.catch_up(stop)
        finally:
            twin.close()

    def _decoded(self, token: int, trace: Trace) -> Tensor | None:
        """Logits after one more token of a reply."""
        if self.replies is None:
            return self._forward(torch.tensor([token]), trace, "last")
        again, before = self.replies.again, (trace.attended, trace.keys_scored)
        logits = self.replies.logits(token, trace)
        self.counters.forwards += 1 + self.replies.again - again
        self._add(1, trace, *before)
        return logits

    def losses(self, of: range, alone: int, progress: Progress | None = None) -> Tensor:
        """Negative log-likelihoods of tokens, each after all those before it; what was fed for it stays, the last of it provisional.

        Args:
            of: which tokens; not the first one, which nothing goes before.
            alone: from this token on each chooses for itself, as those of a reply do. Those before it share their group's choice, in which
                the tokens after them in the group have a say.
            progress: told the number of tokens done after each forward.

        Returns:
            fp32 ``[len(of)]`` on the CPU, in nats.
        """
        asked = range(of.start - 1, of.stop - 1)  # a token's loss is read off the logits of the one before it
        parts = []
        apart = self.floor(max(alone, self.method.attended or 0)) if self.method.recalls else asked.stop
        while (start := self.kv.length) < asked.stop:
            stop = min(self._grid_stop(start), asked.stop, apart if start < apart else asked.stop)
            if start < apart:
                parts.append(self._scored(start, stop, asked, settled=stop))
            else:
                parts.extend(self._one_by_one(start, stop, asked, alone))
                if stop < asked.stop:
                    self._back_to(start)
                    self._forward(self._tokens(start, stop), None, "none")
            if progress is not None:
                progress(stop)
        return torch.cat(parts)

    def _one_by_one(self, start: int, stop: int, asked: range, alone: int) -> Iterator[Tensor]:
        """:meth:`_scored` of tokens ``[start, stop)`` as in a reply: what there is of the group before ``alone`` at once, then each."""
        first = min(max(alone, start), stop)
        if first > start:
            yield self._scored(start, first, asked)
        for token in range(first, stop):
            yield self._scored(token, token + 1, asked)

    def _scored(self, start: int, stop: int, asked: range, settled: int = 0) -> Tensor:
        """Feed tokens ``[start, stop)``; the losses of those after the tokens among them that are asked, fp32 ``[n]``, in nats."""
        trace = Trace()
        first = max(start, asked.start)
        logits = self._forward(self._tokens(start, stop), trace, "all" if first < stop else "none", settled=settled)
        self.counters.prefilled += stop - start
        if logits is None:
            return torch.empty(0)
        wanted = logits[0, first - start :].float()
        return torch.nn.functional.cross_entropy(wanted, self._tokens(first + 1, stop + 1).to(wanted.device), reduction="none").cpu()

    def rebuild(self, blocks: range, source: BlockSource) -> dict[str, Tensor]:
        """Tensors of whole Blocks made again from their tokens, with only earlier memory visible.

        Equal to what was there but for rounding, as long as the memory before them is sound.
        """
        size = self.kv.layout.block_tokens
        kv = self.kv.fork(blocks.start * size, source)
        try:
            again = MemoryEngine(self._attachment, self._tokenizer, self.method, kv, self._tokens, lambda final: None)
            again.catch_up(blocks.stop * size)
            return kv.stored(blocks.start, blocks.stop)
        finally:
            kv.close()

    def _grid_stop(self, start: int) -> int:
        """Where a forward that begins at a token ends at the latest."""
        return start - start % self._chunk + self._chunk

    def _back_to(self, length: int) -> None:
        """Forget tokens from ``length`` on, and count again the attention mass that a truncation or a reopening cut short."""
        self.kv.truncate(length)
        if counted(self.kv):
            return
        twin = twin_to_count(self.kv)
        try:
            again = MemoryEngine(self._attachment, self._tokenizer, self.method, twin, self._tokens, lambda final: None)
            again.catch_up(length)
            take_counts(self.kv, twin)
        finally:
            twin.close()

    def _start(self, count: int, request: GenerationRequest) -> int:
        """Where what is fed for a reply alone begins: the broken group, or the last token where there would be nothing to feed."""
        start = self.floor(count)
        return self.floor(count - 1) if start == count and not request.prompt else start

    def floor(self, count: int) -> int:
        """Where tokens ``[0, count)`` stop being final: the last whole group, or everything that fits the attended set."""
        attended = self.method.attended
        if attended is None or count <= attended or self.method.sizes is None:
            return count
        return count - count % self.method.sizes.group

    def _feed(
        self, ids: Tensor, trace: Trace | None, logits: Logits, progress: Callable[[int], None] | None, since: int = 0
    ) -> Tensor | None:
        """Forward in chunks that end on the grid; returns the logits of the last chunk."""
        out, at = None, 0
        while at < len(ids):
            start = self.kv.length
            size = min(self._grid_stop(start) - start, len(ids) - at)
            last = at + size == len(ids)
            out = self._forward(ids[at : at + size], trace, logits if last else "none", since)
            at += size
            self.counters.prefilled += size
            if trace is None:
                self.final = self.floor(self.kv.length)  # what is saved must not be made again, should the next forward be broken off
                self._saved(self.final)
            if progress is not None:
                progress(at)
        return out

    def _forward(self, ids: Tensor, trace: Trace | None, logits: Logits, since: int = 0, settled: int | None = None) -> Tensor | None:
        start = self.kv.length
        span = (start, start + len(ids))
        shares = trace.shares if trace is not None and logits == "last" else None
        evidence, brought = self._evidence, self._brought
        step = MemoryStep(
            self.kv, self.method, self._attachment, self._ops, span, self._recent, trace, since, settled, shares, evidence, brought
        )
        self.counters.forwards += 1
        before = (0, 0) if trace is None else (trace.attended, trace.keys_scored)
        with torch.no_grad():
            made = self._attachment.forward(ids[None].to(self._attachment.device), start, LayerStep(step), logits=logits)
        if trace is not None:
            self._add(start + len(ids) - max(start, since), trace, *before)
        return made

    def _add(self, tokens: int, trace: Trace, attended: int, keys_scored: int) -> None:
        """Count tokens that were traced, and what the trace has counted beyond what it had."""
        self.counters.traced += tokens
        self.counters.attended += trace.attended - attended
        self.counters.keys_scored += trace.keys_scored - keys_scored
