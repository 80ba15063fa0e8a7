"""A loaded model, a Store and a Method: opens Sessions.

The only object that sees everything; it owns no data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from . import pocket
from .attention.methods import Method, make_method
from .bypass import border_of
from .chat import ChatFormat
from .chat import root as chain_root
from .conversation import Conversation
from .engine import CHUNK_TOKENS, Counters, MemoryEngine, Progress
from .errors import ConfigError, StoreCorrupt
from .kv_files import SegmentFiles
from .made_up import LayerShape
from .memory.block import NoDisk
from .memory.cache import TieredCache
from .memory.session_kv import SessionKV
from .memory.sizes import parse_size
from .memory.tier import block_kinds
from .model.attach import Attachment, attach
from .model.constrain import Grammars
from .model.fingerprint import fingerprint
from .model.load import load
from .model.locate import locate
from .paged_reply import operations_on_pages
from .plans import kv_plan, layout_of, least_blocks, named_choosers, named_settings, unread_layers, unsaved_blocks
from .recorded_method import method_of, what_is_recorded
from .services import Services
from .session import Session
from .store.store import Store
from .structured import StructuredReplies
from .types import BLOCK_TOKENS, Budget, Message, ModelId

if TYPE_CHECKING:
    from .store.timeline import Timeline

HEAD_SHARE = 4
"""The head may take one part in this many of the window."""


class Runtime:
    """Opens Sessions of one model over one Store. A context manager.

    Args:
        model: a loaded causal language model; quantised ones are fine.
        tokenizer: its tokenizer, with a chat template (without one there are no Sessions, but texts can be scored).
        store: folder, SQLAlchemy URL, or an open Store.
        method: how memory takes part in attention, by name or made.
        budget: bytes for each Tier.
        window: trained window in tokens; by default the model's own.
        source: hub id or folder the model came from, for its fingerprint; or the fingerprint, where the model is another Runtime's.
        max_turn_tokens: longest turn.
        timeout: seconds a second thread, or a second process, waits for a Session.
        backend: what decodes replies: ``torch`` layer by layer, or ``triton``, kernels on pages; ``auto`` takes kernels on a CUDA device,
            where there are some for the method and the model.
        border: tokens up to which a new Session attends to everything, at most the window; ``auto`` measures up to where that costs
            less than to recall (see :attr:`measured`), None leaves it at what is attended beyond.
        attention_shares: have Recalls say how much of a reply's attention each turn got; without, they are a little cheaper to make.

    Raises:
        UnsupportedModel: the model's attention cannot be attached.
        ConfigError: a method or budget that cannot be.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        store: str | Path | Store = "./memory",
        method: str | Method = "recall",
        budget: Budget | None = None,
        window: int | None = None,
        source: str | ModelId | None = None,
        max_turn_tokens: int = 2_000_000,
        timeout: float = 0.0,
        backend: str = "auto",
        border: int | Literal["auto"] | None = "auto",
        attention_shares: bool = True,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.attachment: Attachment = attach(model)
        self.window, self.budget = self.attachment.window if window is None else window, budget or Budget()
        self._chat = ChatFormat(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        self.layout = layout_of(self.attachment)
        self.model_id = source if isinstance(source, ModelId) else fingerprint(model, tokenizer, source=source)
        self._model_text = json.dumps(self.model_id.to_dict(), sort_keys=True)
        self._method, self._choosers, self._settings = method, named_choosers(model.config), named_settings(model.config)
        plain = self.method(0)
        self.measured, self.border = border_of(self._layer_shape, plain, self.window, border)
        self._pages = operations_on_pages(self.attachment, plain, self.layout, backend)
        self.cache = TieredCache(
            self.layout,
            self.budget,
            self.attachment.device,
            min_blocks=least_blocks(plain, self.layout),
            unsaved_blocks=unsaved_blocks(plain),
            unread=unread_layers(self.attachment, plain),
        )
        self._max_turn_tokens, self._timeout, self._attention_shares = max_turn_tokens, timeout, attention_shares
        self._owns_store = not isinstance(store, Store)
        self.store = store if isinstance(store, Store) else Store.open(store)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        gguf_file: str | None = None,
        dtype: str | None = None,
        device_map: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Runtime:
        """Load a model by hub id, folder or GGUF file; without one, the pocket model.

        Args:
            model, gguf_file, revision: as :func:`.model.locate.locate` takes them: hub id, folder, GGUF file, or ``"smollm2"``.
            dtype: ``"bfloat16"`` and the like; by default what the checkpoint says.
            device_map: as transformers takes it.
            trust_remote_code: run code that comes with the model.
            options: of :class:`Runtime`.

        Raises:
            ModelError: no such model, or one that cannot be loaded or attached.
            ConfigError: an option that cannot be, or a GGUF file that there is no room or no package for.
        """
        place = locate(pocket.path() if model is None else model, gguf_file=gguf_file, revision=revision)
        loaded, tokenizer = load(place, revision=revision, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
        return cls(loaded, tokenizer, source=place, **options)

    @property
    def chat(self) -> ChatFormat:
        """How conversations are written for the model; ConfigError if its tokenizer has no chat template."""
        return self._chat or ChatFormat(self.tokenizer)

    @cached_property
    def _structured(self) -> StructuredReplies:
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        return StructuredReplies(self.chat, Grammars(self.tokenizer, vocabulary, self.chat.end_ids))

    def method(self, head: int) -> Method:
        """The method for a Session whose head has that many tokens."""
        if isinstance(self._method, Method):
            return self._method
        return self.method_named(self._method, head)

    def method_named(self, spec: str, head: int = 0) -> Method:
        """A method for this model, with what its checkpoint names; ConfigError for one that cannot be."""
        return make_method(spec, self.window, head, choosers=self._choosers, settings=self._settings)

    def _layer_shape(self) -> LayerShape:
        """The first layer that recalls."""
        layer = next(layer for layer in self.attachment.layers if layer.recalls)
        return LayerShape(layer.query_heads, layer.kv_heads, layer.head_dim, self.attachment.dtype, self.attachment.device)

    def session(
        self,
        name: str,
        namespace: str = "default",
        *,
        timeout: float | None = None,
        create: bool = True,
        reinterpret: bool = False,
        conversation: str | None = None,
    ) -> Session:
        """Open a Session, making it if it is new. One that is there keeps the method it was made with, and says so where that differs.

        Args:
            name: its name; any text.
            namespace: its tenant; the only way to a Session is through both.
            timeout: seconds to wait for another writer.
            create: False raises ``SessionNotFound`` for a new name.
            reinterpret: read it with this Runtime's method though another made it, for measurements.
            conversation: a client's conversation it is of; ``SessionExists`` if it is of another one.

        Raises:
            SessionBusy: another writer holds it.
            ModelMismatch: it was made with another model.
            ConfigError: the tokenizer has no chat template.
        """
        wait, chat = self._timeout if timeout is None else timeout, self.chat
        timeline = self.store.session(
            name, namespace, model=self.model_id, layout=self.layout, timeout=wait, create=create, conversation=conversation
        )
        return self._wrap(timeline, chat, reinterpret)

    def score(
        self, ids: Tensor, *, of: range, alone: int | None = None, counters: Counters | None = None, progress: Progress | None = None
    ) -> Tensor:
        """Negative log-likelihoods of tokens of a text, read through the method in memory alone: no Session, nothing is written.

        Args:
            ids: int64 ``[n]``, the text from its beginning.
            of: the tokens to score, in ``[1, n)``; nothing after them is read.
            alone: from this token on each chooses for itself, as those of a reply do (a forward each); None is none of them. The others
                share a choice with their group, in which the tokens after them have a say.
            counters: added to.
            progress: told the number of tokens read.

        Returns:
            fp32 ``[len(of)]`` on the CPU, in nats.

        Raises:
            ConfigError: no such tokens, or the device budget does not hold the text.
        """
        if of.step != 1 or not 1 <= of.start < of.stop <= len(ids):
            raise ConfigError(f"of={of} are no tokens that can be scored; choose from range(1, {len(ids)})")
        self._check_room(of.stop)
        method = self.method(0)
        kv = SessionKV(self.layout, kv_plan(self.attachment, method, CHUNK_TOKENS), self.cache, NoDisk())
        try:
            engine = MemoryEngine(self.attachment, self.tokenizer, method, kv, lambda start, stop: ids[start:stop], lambda final: None)
            engine.counters = counters or engine.counters
            return engine.losses(of, of.stop if alone is None else alone, progress)
        finally:
            kv.close()

    def _check_room(self, tokens: int) -> None:
        """A text without a disk behind it must fit: its Blocks are the only copies, and never leave the device Tier."""
        kinds = block_kinds(self.layout)
        missing = tokens // BLOCK_TOKENS - min(self.cache.max_read(kind.layers[0]) // len(kind.layers) for kind in kinds)
        if missing > 0:
            least = parse_size(self.budget.device) + (missing + 1) * sum(len(kind.layers) * kind.block_bytes for kind in kinds)
            raise ConfigError(f"a text of {tokens} tokens does not fit Budget.device={self.budget.device!r}; it takes {least} bytes")

    def _wrap(self, timeline: Timeline, chat: ChatFormat, reinterpret: bool = False) -> Session:
        conversation = Conversation(
            timeline,
            chat,
            lambda system, tools: self._root(timeline.namespace, system, tools),
            head_limit=self.window // HEAD_SHARE,
            max_turn_tokens=self._max_turn_tokens,
            made_by=lambda head: what_is_recorded(self.method(head), self.window, self.border),
        )
        services = Services(
            open_engine=lambda: self._engine(timeline, conversation, reinterpret),
            branch=partial(self._branch, reinterpret=reinterpret),
            damaged=lambda: self._damaged(timeline.name, timeline.namespace),
            structured=self._structured,
            later=self.cache.later,
        )
        return Session(conversation, services, timeout=max(self._timeout, 0.0))

    def _damaged(self, name: str, namespace: str) -> set[int]:
        """Blocks of a Session that ``verify`` finds damaged."""
        return {found.block for found in self.store.verify(name, namespace).damage if found.block is not None}

    def chain(self, namespace: str, system: str | None, tools: Sequence[Mapping[str, Any]], messages: Sequence[Message]) -> list[str]:
        """Hashes of a conversation before its first message and after each, as Sessions keep them with their turns."""
        return list(accumulate(messages, self.chat.chain, initial=self._root(namespace, system, tools)))

    def _root(self, namespace: str, system: str | None, tools: Sequence[Mapping[str, Any]]) -> str:
        return chain_root(namespace, self._model_text, self.chat.template_hash, system, tools)

    def _method_of(self, name: str, conversation: Conversation, reinterpret: bool) -> Method:
        """The method of a Session.

        Raises:
            ConfigError: it needs more of the device Tier than the budget gives.
        """
        head = conversation.head_tokens

        def make(spec: str, window: int) -> Method:
            return make_method(spec, window, head, choosers=self._choosers)

        method = method_of(name, conversation.made_by, self.method(head), self.window, make, reinterpret=reinterpret)
        needed = least_blocks(method, self.layout)
        if needed > min(self.cache.max_read(kind.layers[0]) for kind in block_kinds(self.layout)):
            raise ConfigError(
                f"session {name!r} was made with {method.spec}, which needs {needed} blocks of a layer at once; raise Budget.device"
            )
        return method

    def _engine(self, timeline: Timeline, conversation: Conversation, reinterpret: bool) -> tuple[MemoryEngine, SegmentFiles]:
        files = SegmentFiles(timeline)
        method = self._method_of(timeline.name, conversation, reinterpret)
        kv = SessionKV(self.layout, kv_plan(self.attachment, method, CHUNK_TOKENS), self.cache, files)
        files.load(kv)
        return self._assemble(timeline, method, kv, files), files

    def _assemble(self, timeline: Timeline, method: Method, kv: SessionKV, files: SegmentFiles) -> MemoryEngine:
        known = int(self.model.get_input_embeddings().num_embeddings)

        def tokens(start: int, stop: int) -> Tensor:
            ids = timeline.tokens(start, stop)
            if len(ids) and int(ids.max()) >= known:
                raise StoreCorrupt(f"session {timeline.name!r} holds token id {ids.max()}, the model knows {known}; run verify")
            return torch.from_numpy(ids.astype("int64"))

        return MemoryEngine(
            self.attachment, self.tokenizer, method, kv, tokens, lambda final: files.flush(kv, final), self._pages, self._attention_shares
        )

    def _branch(self, parent: Session, name: str, at: int | None, conversation: str | None, reinterpret: bool = False) -> Session:
        """A child of an open Session: its rows in the Store, and its keys and values shared with the parent's."""
        timeline = parent.timeline
        timeline.fork(name, at, conversation=None if conversation == name else conversation)
        child = self.store.session(name, parent.namespace, model=self.model_id, layout=self.layout, timeout=self._timeout, create=False)
        session = self._wrap(child, self.chat, reinterpret)
        if parent.has_engine:
            engine = parent.engine
            files = SegmentFiles(child)
            final = engine.floor(min(child.token_count, engine.final))
            kv = engine.kv.fork(final, files)
            session.adopt(self._assemble(child, engine.method, kv, files), files)
        return session

    def close(self) -> None:
        """Take the hooks off the model and close the Store if it was opened here."""
        self.attachment.detach()
        self.cache.close()
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
