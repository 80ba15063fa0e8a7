"""Decodes the tokens of a reply on pages: one forward of fixed shapes a token, captured where there is a GPU.

Knows the forward, the page tables and how they are kept true; nothing of sampling or text. A step reads Blocks where the table says they
lie. Afterwards, with the one copy to the host that a token needs anyway, it is seen which Blocks were chosen: if one lay in no Tier, or
anything moved meanwhile, it is brought, and the step is made again. So nothing waits in the middle of a step, and what comes out is what
comes out when everything is there.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from agent_memory_kernels import KernelError, PagedOperations, Rotation, operations, paged

from .attention.methods import Method
from .attention.paged.fits import why_not
from .attention.paged.step import PagedStep, positions_attended
from .attention.recent_queries import RecentQueries
from .attention.selectors.base import pooled
from .attention.trace import Trace
from .errors import ConfigError
from .layer_step import LayerStep
from .memory.names import distinct
from .memory.pages import PageTables
from .memory.session_kv import SessionKV
from .model.attach import Attachment
from .model.captured import Captured
from .types import BLOCK_TOKENS, Certificate, KVLayout

BACKENDS = ("auto", "torch", "triton")
"""What decodes replies: torch layer by layer, or kernels on pages; ``auto`` takes kernels on a CUDA device, where there are some for it."""

ROOM = 256
"""Blocks that tables have room for beyond what there is, so that a growing Session seldom needs others."""


def operations_on_pages(attachment: Attachment, method: Method, layout: KVLayout, backend: str) -> PagedOperations | None:
    """The operations replies are decoded with on pages; None where torch decodes them layer by layer: on a CPU, with ``backend="torch"``,
    and, with ``"auto"``, for what there are no kernels for.

    Raises:
        ConfigError: ``backend="triton"``, and there is a reason against it; or no such backend.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend={backend!r} cannot be used; choose one of {', '.join(BACKENDS)}")
    device = attachment.device
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return None
    reason = why_not(method, layout) or why_no_rotation(attachment)
    if reason is not None and backend == "auto":
        return None
    try:
        if reason is not None:
            raise KernelError(reason)
        return paged("triton", device)
    except KernelError as error:
        raise ConfigError(f"backend='triton' cannot be used: {error}; or choose backend='torch'") from error


def why_no_rotation(attachment: Attachment) -> str | None:
    """Why the rotation of a model cannot be done in a kernel; None if it can."""
    for layer in attachment.layers:
        if layer.kind == "sliding" and not layer.recalls:
            return f"layer {layer.name} has a sliding window of its own"
        if attachment.rotation(layer.index, 1) is None:
            return f"layer {layer.name} rotates in a way of its own"
    return None


class PagedReply:
    """Replies of one Session, one after another.

    Args:
        attachment: the model.
        kv: the Session's keys and values.
        method: how memory takes part.
        ops: operations on pages.
        capture: capture the forward in a graph, where the device has graphs.

    Attributes:
        again: steps that were made again.
    """

    def __init__(self, attachment: Attachment, kv: SessionKV, method: Method, ops: PagedOperations, *, capture: bool = True) -> None:
        self._attachment, self._kv, self._method, self._ops = attachment, kv, method, ops
        self._step: PagedStep | None = None
        self._ids = torch.zeros((1, 1), dtype=torch.int64, device=attachment.device)
        self._forward = Captured(self._run, capture and attachment.device.type == "cuda")
        self._length, self._lie = 0, tuple[tuple[int, int], ...]()
        self.again = 0

    def open(self, recent: RecentQueries, tokens: int) -> None:
        """Begin a reply of at most so many tokens after those there are; ``recent`` are the queries of the last of them."""
        needed = self._kv.blocks + 2 + tokens // BLOCK_TOKENS
        if self._step is None or self._step.tables.width < needed:
            tables = PageTables(self._kv, needed + ROOM)
            longest = positions_attended(self._method)
            found = [self._attachment.rotation(layer, longest) for layer in range(self._kv.layout.layers)]
            rotations = [None if pair is None or pair[0].shape[1] == 0 else Rotation(*pair) for pair in found]
            self._step = PagedStep(self._kv, self._method, self._ops, operations("torch"), rotations, tables)
            self._forward.forget()
        step, self._length = self._step, self._kv.length
        step.heard.forget()
        for layer in step.choosers if step.echoes else []:
            queries = recent.before(layer, self._length)
            if queries is not None:
                rows = pooled(queries[None], self._kv.layout.kv_heads[layer])[0]
                step.heard.recall(layer, rows.to(self._kv.dtype), self._length)
        step.tables.open()
        with ExitStack() as held:
            self._settle(step, held)

    @property
    def launches(self) -> dict[str, int]:
        """Kernels launched so far, by name; those of a captured forward once."""
        return {} if self._step is None else dict(self._step.workspace.launches)

    @property
    def captures(self) -> int:
        """Graphs that were captured so far."""
        return self._forward.captures

    def close(self) -> None:
        """End the reply; what was decoded since the last whole Block is forgotten."""
        if self._step is not None:
            self._step.tables.close()

    def logits(self, token: int, trace: Trace) -> Tensor:
        """Feed one token and give the logits ``[vocabulary]`` of the next; they are valid until the next call.

        Raises:
            ConfigError: the device budget cannot hold what one token attends to.
        """
        step = self._opened()
        step.position.fill_(self._length)
        step.dense = self._length < (self._method.attended or 0)
        self._ids.fill_(token)
        tiers: dict[tuple[int, int], int] = {}  # of what was brought, and is held until the step is done
        with ExitStack() as held:
            fixed = False  # what it attends to was held where it is before the step began, so that nothing that moved matters
            while True:
                logits = self._forward.run((step.dense, self._lie))
                chosen = step.chosen.to("cpu", copy=True).numpy()
                readers = [] if step.dense else self._readers(step, chosen)
                absent = any(len(step.tables.absent(layer, blocks)) for layer, blocks in readers)
                fixed = fixed and all((layer, number) in tiers for layer, blocks in readers for number in blocks.tolist())
                if not absent and (fixed or not step.tables.moved()):
                    break
                for layer, blocks in readers:
                    more = np.array([number for number in blocks.tolist() if (layer, number) not in tiers], np.int64)
                    found = step.tables.bring(layer, more, held)
                    tiers.update({(layer, number): tier for number, tier in zip(more.tolist(), found.tolist(), strict=True)})
                self._settle(step, held)
                fixed, self.again = True, self.again + 1
        self._count(step, chosen, readers, tiers, trace)
        self._length += 1
        if self._length % BLOCK_TOKENS == 0:
            self._seal(step)
        return logits.reshape(-1)

    def _run(self) -> Tensor:
        step = self._opened()
        step.begin()
        with torch.no_grad():
            logits = self._attachment.forward(self._ids, 0, LayerStep(step), positions=step.position[None])
        if logits is None:
            raise RuntimeError("the forward made no logits")
        return logits

    def _opened(self) -> PagedStep:
        if self._step is None:
            raise RuntimeError("open a reply first")
        return self._step

    def _settle(self, step: PagedStep, held: ExitStack) -> None:
        """Bring the local Blocks, all of them where everything is attended, and look where the others are."""
        sizes = self._method.sizes
        local = 0 if sizes is None else sizes.local + sizes.group
        first = 0 if self._length < (self._method.attended or 0) else max(0, self._length - local) // BLOCK_TOKENS
        step.tables.settle(range(first, self._kv.blocks), held)
        self._lie = step.summaries()

    def _readers(self, step: PagedStep, chosen: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Each layer that reads chosen Blocks, and which."""
        readers, blocks = [], None
        for layer in range(self._kv.layout.layers):
            if layer in step.choosers:
                blocks = distinct(chosen[step.choosers.index(layer)])
            if blocks is not None:
                readers.append((layer, blocks))
        return readers

    def _count(
        self, step: PagedStep, chosen: np.ndarray, readers: list[tuple[int, np.ndarray]], tiers: dict[tuple[int, int], int], trace: Trace
    ) -> None:
        """Tell the trace what was chosen, and read by whom."""
        sizes, layers = self._method.sizes, self._kv.layout.layers
        if step.dense or sizes is None:
            trace.attended += layers * (self._length + 1)
            return
        near = sizes.local + self._length % sizes.group + 1
        trace.attended += layers * (sizes.sink + near) + len(readers) * chosen.shape[-1] * BLOCK_TOKENS
        trace.lose(self._kv.lost)
        stop = self._length - self._length % sizes.group - sizes.local
        count, lost = -(-stop // BLOCK_TOKENS), self._kv.lost
        all_of_them = np.count_nonzero(~lost[sizes.sink // BLOCK_TOKENS : count]) <= chosen.shape[-1]
        for at, layer in enumerate(step.choosers):
            scored = self._kv.layout.kv_heads[layer] * count * BLOCK_TOKENS
            certified: Certificate = "memory" if all_of_them else "no"
            trace.choose_blocks(chosen[at, 0], bool(all_of_them and not lost.any()), certified, scored)
        for layer, blocks in readers:
            known = step.tables.tiers(layer, blocks)
            trace.read(blocks, np.array([tiers.get((layer, number), tier) for number, tier in zip(blocks.tolist(), known, strict=True)]))

    def _seal(self, step: PagedStep) -> None:
        """The Block in the making is whole: it goes to the Session like any other, and another is begun."""
        kv, start = self._kv, self._kv.length
        for layer in range(kv.layout.layers):
            kv.append(layer, *step.tables.made(layer, start, self._length))
        with ExitStack() as held:
            self._settle(step, held)
