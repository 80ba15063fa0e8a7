"""One Session's keys and values where attention can reach them: sink, window, summaries, and Blocks in the Tiers.

Knows token indices, Blocks and the cache they live in; does not know models, methods, text, or how Blocks are written to disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..errors import BlockDamaged
from ..types import KVLayout
from .ahead import Ahead
from .block import BlockSource
from .cache import TieredCache
from .gathering import joined, write_blocks, write_tokens
from .layer_kv import Gathered, KVPlan, LayerKV
from .names import BlockNames, distinct
from .restoring import restore_layer


class SessionKV:
    """Keys and values of tokens ``[0, length)`` of one Session, for all layers.

    Args:
        layout: shapes of a Block.
        plan: what is kept beside Blocks.
        cache: the Runtime's Tiers.
        source: where evicted Blocks are read from.
    """

    def __init__(self, layout: KVLayout, plan: KVPlan, cache: TieredCache, source: BlockSource) -> None:
        self.layout, self.plan, self.cache, self.source = layout, plan, cache, source
        self.dtype: torch.dtype = getattr(torch, layout.dtype)
        self.device = torch.device(cache.device)
        self.layers = [LayerKV(layout, i, plan, self.dtype, self.device, partial(self.true_keys, i)) for i in range(layout.layers)]
        self._names = BlockNames()
        self.saved, self.dropped = 0, False
        self.ahead = Ahead(plan.recalling if cache.prefetches else (), layout.block_tokens, self._prefetch)
        cache.count(self)

    @property
    def uids(self) -> np.ndarray:
        """int64 ``[blocks]``: what the cache calls each Block."""
        return self._names.uids

    @property
    def lost(self) -> np.ndarray:
        """bool ``[blocks]``: Blocks that were found damaged."""
        return self._names.lost

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.layers[-1].window.stop

    @property
    def blocks(self) -> int:
        """Whole Blocks held, by every layer."""
        return self.layers[-1].sealed

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Append one layer's keys and values ``[Hk, T, d]``; Blocks that fill up enter the cache and the summary at once."""
        part = self.layers[layer]
        start = part.window.stop
        if part.clusters is not None and part.summary is not None:
            part.clusters.cover(start, part.summary.scanned_keys)
        room = self.plan.sink - start
        if room > 0:
            count = min(room, k.shape[1])
            part.sink[0, :, start : start + count] = k[:, :count]
            part.sink[1, :, start : start + count] = v[:, :count]
        part.window.append(k, v)
        self._seal(layer, part)

    def _seal(self, layer: int, part: LayerKV) -> None:
        size = self.layout.block_tokens
        whole = part.window.stop // size
        if whole <= part.sealed:
            return
        self._name_blocks(whole)
        k, v = part.window.view(part.sealed * size, whole * size)
        kv = torch.stack([k, v]).reshape(2, k.shape[0], whole - part.sealed, size, -1).permute(2, 0, 1, 3, 4)
        self.cache.put(layer, self.uids[part.sealed : whole], kv)
        self._summarise(part, kv)
        part.sealed = whole

    @staticmethod
    def _summarise(part: LayerKV, kv: Tensor) -> None:
        """Note what is kept of new Blocks ``[n, 2, Hk, 32, d]``."""
        for rows in (part.summary, part.every_key):
            if rows is not None:
                rows.append(kv[:, 0])
        if part.rotated_keys is not None and part.summary is not None:
            # From the 8-bit keys, so that a Session that was reopened chooses by the same numbers.
            part.rotated_keys.append(part.summary.float_keys(len(part.rotated_keys), len(part.summary)))
        if part.parts is not None:
            part.parts.append(kv[:, 0], kv[:, 1])

    def _name_blocks(self, count: int) -> None:
        missing = count - len(self._names)
        if missing > 0:
            self._names.append(self.cache.allocate(missing))

    def truncate(self, length: int) -> None:
        """Forget tokens from ``length`` on, in the layers too that a forward reached before it was broken off."""
        if all(part.window.stop <= length for part in self.layers):
            return
        size = self.layout.block_tokens
        whole = length // size
        for layer, part in enumerate(self.layers):
            if not part.window.truncate(length):
                self._refill(layer, part, length)
            part.truncate(length, whole)
        self.cache.release(self.uids[whole:])
        self._names.truncate(whole)
        self.saved = min(self.saved, whole)

    def _refill(self, layer: int, part: LayerKV, length: int) -> None:
        """Put the newest tokens before ``length`` back into the window: from their Blocks, and those after the last Block from itself."""
        size, window = self.layout.block_tokens, part.window
        first = 0 if self.plan.keep is None else max(0, length - self.plan.keep) // size
        last, rest = -(-length // size), None
        if window.start <= length // size * size and length <= window.stop:
            last = length // size
            rest = [tensor.clone() for tensor in window.view(last * size, length)]
        window.reset(first * size)
        for k, v in self._read_in_order(layer, first, last):
            window.append(k, v)
        if rest is not None:
            window.append(*rest)
        window.stop = length

    def _read_in_order(self, layer: int, first: int, last: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values ``[Hk, tokens, d]`` of consecutive Blocks; a damaged Block reads as zeros."""
        step = max(1, min(64, self.cache.max_read(layer)))
        for at in range(first, last, step):
            numbers = np.arange(at, min(at + step, last))
            with self.cache.reading(layer, self.uids[numbers], numbers, self.source) as reading:
                kv = reading.pool[reading.slots.clamp(min=0)]
                kv = kv.masked_fill((reading.slots < 0)[:, None, None, None, None], 0.0)
            flat = kv.permute(1, 2, 0, 3, 4).flatten(2, 3)
            yield flat[0], flat[1]

    def gather(self, layer: int, tokens: Tensor, out: Tensor, *, blocks: Tensor | None = None, exact: bool = True) -> Gathered:
        """Write keys and values of chosen tokens to ``out``, wherever their Blocks are; zeros where there are none.

        Args:
            layer: dense layer index.
            tokens: int64 ``[G, S, n]`` token indices of sealed Blocks, padded with -1; ``S`` is 1 (all KV heads) or ``Hk``.
            out: ``[2, G, Hk, n, d]``, each head's rows contiguous.
            blocks: int64 ``[G, S, b]``, padded with -1: the Blocks the tokens are all of, if they are; then whole ones are copied.
            exact: take no approximate copies; for all whose own keys and values will be kept.

        Raises:
            ConfigError: the device budget cannot hold the Blocks of one group.
        """
        size = self.layout.block_tokens
        numbers = tokens.div(size, rounding_mode="floor") if blocks is None else blocks
        on_host = numbers.cpu().numpy()
        wanted = distinct(on_host)
        if tokens.shape[0] > 1 and len(wanted) > self.cache.max_read(layer):
            half = tokens.shape[0] // 2
            first, second = (None, None) if blocks is None else (blocks[:half], blocks[half:])
            before = self.gather(layer, tokens[:half], out[:, :half], blocks=first, exact=exact)
            return joined(before, self.gather(layer, tokens[half:], out[:, half:], blocks=second, exact=exact))
        self.ahead.read(layer, wanted, reply=not exact)
        with self.cache.reading(layer, self.uids[wanted], wanted, self.source, exact=exact) as reading:
            slot_of = reading.slots.new_full((len(self.uids) + 1,), -1)
            slot_of[torch.from_numpy(wanted).to(self.device)] = reading.slots
            slots = slot_of[numbers]  # what is padded takes the last, which is nobody's
            if blocks is None:
                write_tokens(reading.pool, slots.clamp(min=0), tokens.clamp(min=0) % size, out)
            else:
                write_blocks(reading.pool, slots.clamp(min=0), out)
            damaged = wanted[(reading.slots < 0).cpu().numpy()]
            self.lost[damaged] = True
            valid = slots >= 0 if blocks is None else (slots >= 0).repeat_interleave(size, -1)
            if len(damaged) or bool((on_host < 0).any()):
                out.masked_fill_(~valid[None, ..., None], 0.0)
            return Gathered(valid, wanted, np.asarray(reading.tiers))

    def _prefetch(self, layer: int, blocks: np.ndarray) -> None:
        blocks = blocks[blocks < self.saved]
        self.cache.prefetch(layer, self.uids[blocks], blocks, self.source)

    def true_keys(self, layer: int, blocks: Tensor, head: int | None = None) -> tuple[Tensor, Tensor]:
        """See ``ReadKeys``: keys as they are stored."""
        parts, sound, heads = [], [], slice(None) if head is None else slice(head, head + 1)
        for numbers in np.array_split(blocks.cpu().numpy(), -(-len(blocks) // max(1, self.cache.max_read(layer))) or 1):
            with self.cache.reading(layer, self.uids[numbers], numbers, self.source) as reading:
                parts.append(reading.pool[:, 0, heads].index_select(0, reading.slots.clamp(min=0)))
                sound.append(reading.slots >= 0)
                self.lost[numbers[(reading.slots < 0).cpu().numpy()]] = True
        return (parts[0], sound[0]) if len(parts) == 1 else (torch.cat(parts), torch.cat(sound))

    def fork(self, length: int, source: BlockSource) -> SessionKV:
        """A Session of its own that shares the Blocks before ``length``; both may go on."""
        child = SessionKV(self.layout, self.plan, self.cache, source)
        self.cache.retain(self.uids)
        child._names, child.saved = self._names.copy(), self.saved
        for mine, theirs in zip(self.layers, child.layers, strict=True):
            mine.fork_into(theirs, length)
        child.truncate(length)
        return child

    def mark_saved(self, blocks: int) -> None:
        """The first ``blocks`` Blocks are on disk: their copies may be evicted."""
        if blocks > self.saved:
            self.cache.saved(self.uids[self.saved : blocks])
            self.saved = blocks

    def drop(self) -> None:
        """Give the cache back what this Session held as soon as it is used next; see :meth:`.TieredCache.later`."""
        self.dropped = True
        self.cache.later(self.close)

    def close(self) -> None:
        """Give the cache back what this Session held, and free the rest: what reads keys refers to them and they to it, so that they would
        stay in memory until Python looks for cycles."""
        self.cache.release(self.uids)
        self._names.truncate(0)
        self.cache.discount(self)
        self.layers.clear()

    def stored(self, first: int, last: int) -> dict[str, Tensor]:
        """Tensors of Blocks ``[first, last)`` as a Segment holds them: ``layers.N.kv`` and the summaries, leading dimension Blocks.

        Raises:
            BlockDamaged: one of them cannot be read any more; damage is never written again as if it were sound.
        """
        numbers = np.arange(first, last)
        tensors: dict[str, Tensor] = {}
        for layer, part in enumerate(self.layers):
            with self.cache.reading(layer, self.uids[numbers], numbers, self.source) as reading:
                if bool((reading.slots < 0).any()):
                    raise BlockDamaged(f"a block of [{first}, {last}) is damaged; repair the session")
                tensors[f"layers.{layer}.kv"] = reading.pool[reading.slots]
            for rows_of in (part.summary, part.representatives, part.parts):
                if rows_of is not None:
                    tensors.update({f"layers.{layer}.{name}": rows for name, rows in rows_of.state(first, last).items()})
        return tensors

    def restore(self, blocks: int, summaries: dict[str, Tensor] | None) -> None:
        """Take up the next ``blocks`` Blocks from disk, without reading them.

        Args:
            blocks: how many.
            summaries: ``layers.N.<name>`` rows as ``stored`` gave them, or None where they are damaged: those Blocks are lost.
        """
        size, first = self.layout.block_tokens, self.blocks
        self._name_blocks(first + blocks)
        self.lost[first:] = summaries is None
        for layer, part in enumerate(self.layers):
            known = {} if summaries is None else _of_layer(summaries, layer)
            part.sealed += blocks
            part.window.reset(part.sealed * size)
            restore_layer(part, first, blocks, known, summaries is None, partial(self._read_in_order, layer, first, first + blocks))
        self.mark_saved(first + blocks)

    def settled(self, final: int) -> int:
        """How many of ``final`` tokens may be written: not those of which something will only be known later."""
        plan = self.plan.keeps.representatives
        return final if plan is None else min(final, plan.end(plan.made(final)))

    def restore_tail(self, tail: dict[str, Tensor]) -> None:
        """Append the tokens after the last Segment, ``layers.N.kv [1, 2, Hk, t, d]``, and take up the clusters of those before them."""
        self.refill()
        size = self.layout.block_tokens
        for layer, part in enumerate(self.layers):
            if part.clusters is not None and part.summary is not None:
                part.clusters.load(_of_layer(tail, layer), len(part.summary) * size, part.summary.scanned_keys)
            kv = tail[f"layers.{layer}.kv"][0].to(self.device)
            if kv.shape[2]:
                self.append(layer, kv[0], kv[1])

    def refill(self) -> None:
        """Read sink and window back from their Blocks, after ``restore``."""
        size, length = self.layout.block_tokens, self.length
        for layer, part in enumerate(self.layers):
            if part.window.stop > 0 and part.window.start == part.window.stop:
                self._refill(layer, part, length)
                at = 0
                for k, v in self._read_in_order(layer, 0, min(self.blocks, self.plan.sink // size)):
                    part.sink[0, :, at : at + k.shape[1]], part.sink[1, :, at : at + k.shape[1]] = k, v
                    at += k.shape[1]

    def tail(self) -> dict[str, Tensor]:
        """Tokens after the last saved Block, and clusters, as ``restore_tail`` takes them."""
        start, tensors = self.saved * self.layout.block_tokens, {}
        for layer, part in enumerate(self.layers):
            tensors[f"layers.{layer}.kv"] = torch.stack(part.window.view(start, self.length))[None]
            if part.clusters is not None:
                tensors |= {f"layers.{layer}.{name}": rows for name, rows in part.clusters.state().items()}
        return tensors

    @property
    def nbytes(self) -> int:
        """Bytes held beside the Tiers: windows, sinks, summaries, names of Blocks."""
        return self._names.nbytes + sum(part.nbytes for part in self.layers)


def _of_layer(tensors: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): rows for name, rows in tensors.items() if name.startswith(prefix)}
