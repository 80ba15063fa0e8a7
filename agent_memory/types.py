"""The small frozen records that travel between the rooms of this package.

Knows the nouns (Turn, Block, Segment, Recall, Budget), what one of them cannot be, and nothing of how they are kept or computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from agent_memory.errors import ConfigError
from agent_memory.given import schema_problem

BLOCK_TOKENS = 32
"""Tokens in a Block."""

BLOCK_BITS = BLOCK_TOKENS.bit_length() - 1
"""A token's number shifted right by so many bits is its Block's."""

SEGMENT_BLOCKS = 32
"""Blocks in a full Segment."""

GROUP_TOKENS = 16
"""Queries that share one selection, on an absolute grid."""

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
TierName = Literal["device", "host", "disk", "host-int8", "host-int4"]
ColdKind = Literal["exact", "int8", "int4"]
Certificate = Literal["memory", "survivors", "no"]


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes a Tier may hold. Sizes are ints, or strings such as ``"8GiB"``.

    ``device`` is the slot pool attention reads from (on a CPU it is ordinary memory), ``host`` holds summaries, key sketches,
    windows and, with a GPU, spilled Blocks. Disk is not bounded.

    ``cold`` says how spilled Blocks are held: ``exact``, or in 8 or 4 bits a number (``int8``, ``int4``), so that more of them stay
    in memory, on a CPU too. Those are approximate: replies may read them, and then say so; nothing that is kept is made from them.
    ``prefetch`` has Blocks that will be wanted soon read from disk in the background.
    """

    device: int | str = "256MiB"
    host: int | str = "256MiB"
    cold: ColdKind = "exact"
    prefetch: bool = True


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Shape of one Block's keys and values, layer by layer.

    Attributes:
        kv_heads: KV heads of each attention layer.
        head_dim: head dimension of each attention layer.
        dtype: torch dtype name without prefix, e.g. ``"float32"`` or ``"bfloat16"``.
        block_tokens: tokens in a Block.
    """

    kv_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    dtype: str
    block_tokens: int = BLOCK_TOKENS

    @property
    def layers(self) -> int:
        """Number of attention layers."""
        return len(self.kv_heads)

    def block_shape(self, layer: int) -> tuple[int, int, int, int]:
        """Shape of one Block at one layer: ``[2 (key, value), kv_heads, block_tokens, head_dim]``."""
        return (2, self.kv_heads[layer], self.block_tokens, self.head_dim[layer])


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asked for."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, before it is rendered.

    ``name`` is the tool's name for role ``tool``; ``tool_calls`` belong to role ``assistant``; ``tool_call_id`` names the call a
    ``tool`` message answers.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message as it stands in a Session: its text and the place of its tokens.

    ``start`` is the index of its first token in the Session, ``tokens`` their number, ``chain`` the hash of the history up to and
    with this turn, ``meta`` small JSON facts (tool calls, finish reason, method).
    """

    index: int
    role: Role
    name: str | None
    text: str
    start: int
    tokens: int
    chain: str
    created: float
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        """Index after its last token."""
        return self.start + self.tokens


@dataclass(frozen=True, slots=True)
class Receipt:
    """What ``append`` acknowledges: ``durable`` means text and token ids are committed and fsynced."""

    turn: int
    tokens: int
    durable: bool


@dataclass(frozen=True, slots=True)
class RecalledTurn:
    """One turn that took part in a reply through memory.

    ``score`` is its attention share: the softmax weight of its recalled tokens, averaged over all attention layers, query heads and
    tokens of the reply, 0 where it was not read. It says that and no more: not that the answer came from this turn. ``peak`` is the
    largest weight one of its tokens got: in one layer, at one token of the reply, on average over the query heads of one KV head.
    ``tokens_ago`` counts from its last token; ``tier`` is the slowest Tier it was read from.
    """

    turn: int
    role: Role
    name: str | None
    tokens_ago: int
    score: float | None
    tier: TierName
    text: str
    peak: float | None = None


@dataclass(frozen=True, slots=True)
class Recall:
    """What memory contributed to one reply, for people.

    ``turns`` hold the Blocks that were read, highest score first; of more than 32 the 16 with the highest score, and the 16 of the others
    with the highest peak. The scores, ``sink_share`` (the first tokens, and
    extra logits a layer may have), ``other_share`` (turns beyond the 32), ``unread_share`` (what was not read, and is attended to by means
    of its values: option ``estimate_unread`` of ``recall``) and ``local_share`` (all else: the latest tokens, the reply's own, what is
    attended to without being chosen) add up to 1. A token of the reply counts with the forward it was chosen from, that
    of the token before it. Scores and shares are None with ``attention_shares`` off, and for replies decoded in kernels on pages; turns
    are ranked by the share of selections that included a Block of theirs then, which was the score in records without shares.

    ``exact`` is True only if every selection of the reply is the one the same rule makes over every stored key in fp32, and no Block
    was read from ``host-int8`` or ``host-int4`` (see :class:`Budget`). ``certified`` says over what the top Blocks were proven
    (``memory``, ``survivors`` or ``no``). ``damaged`` lists Blocks that were wanted and could not be trusted; they were left out.
    ``selections`` counts (layer, KV head, group); ``blocks`` the distinct Blocks read; ``keys_scored`` the key vectors scored;
    ``keys_rescored`` the tokens whose true keys were read to prove the choice.
    """

    turns: tuple[RecalledTurn, ...] = ()
    exact: bool = True
    certified: Certificate = "memory"
    selections: int = 0
    blocks: int = 0
    keys_scored: int = 0
    keys_rescored: int = 0
    tiers: Mapping[str, int] = field(default_factory=dict)
    damaged: tuple[int, ...] = ()
    sink_share: float | None = None
    local_share: float | None = None
    other_share: float | None = None
    unread_share: float | None = None

    def foremost(self, most: int) -> tuple[RecalledTurn, ...]:
        """The turns to show where only ``most`` can be, in their order (:func:`foremost`)."""
        return foremost(self.turns, most)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def foremost(turns: Sequence[RecalledTurn], most: int) -> tuple[RecalledTurn, ...]:
    """At most so many of recalled turns, in their order: half of them the first, half those with the highest peaks among the others.

    A long turn that was read a little by every head has the higher score; the one that a fact was copied from has the peak.
    """
    first = most - most // 2
    others = sorted(range(first, len(turns)), key=lambda at: -(turns[at].peak or 0.0))[: most // 2]
    return tuple(turns[at] for at in [*range(min(first, len(turns))), *sorted(others)])


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the defaults are greedy.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1.0, ``min_p`` 0.0 and ``repetition_penalty`` 1.0 are off.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """What a reply has to be; it is held to it token by token (constrained decoding).

    Attributes:
        tool_choice: ``auto`` is text, calls, or text and then calls; ``required`` at least one call and no text; ``none`` text only;
            any other word is the name of the one tool to call, once.
        parallel: several calls in one reply.
        schema: JSON schema; where the reply would be text it is one JSON value of it.
        strict: a schema that cannot be enforced is an error with ``auto`` too; otherwise that tool's arguments are any JSON object.

    Raises:
        ConfigError: a schema that is none.
    """

    tool_choice: str = "auto"
    parallel: bool = True
    schema: Mapping[str, Any] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.schema is None:
            return
        if not isinstance(self.schema, Mapping):
            raise ConfigError(f"the schema of a reply must be a JSON schema object, not {type(self.schema).__name__}; any JSON is {{}}")
        if problem := schema_problem(self.schema):
            raise ConfigError(f"the schema of the reply cannot be used: {problem}")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One reply to generate after the tokens a Session holds.

    ``prompt`` are ids to feed first (the generation prompt); ``end_ids`` end the reply; ``stop`` are strings that end it and are
    cut from its text; ``asked`` is the token where the message that is answered begins, None where there is none.
    """

    prompt: tuple[int, ...] = ()
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    end_ids: tuple[int, ...] = ()
    asked: int | None = None


@dataclass(frozen=True, slots=True)
class ModelId:
    """Fingerprint of everything stored KV depends on; gates opening a Session, field by field."""

    architecture: str
    config: str
    weights: str
    dtype: str
    rope: str
    tokenizer: str
    chat_template: str
    block_tokens: int = BLOCK_TOKENS
    format: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One line of ``agent-memory sessions``. Bytes are those on disk that only this Session needs to be counted for.

    ``damage`` says what is wrong with the index row of one that cannot be opened; nothing else is known of it then.
    """

    namespace: str
    name: str
    turns: int
    tokens: int
    kv_tokens: int
    bytes: int
    created: float
    updated: float
    parent: str | None
    model: str
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing ``verify`` found wrong; ``turns`` are the turns whose tokens it held."""

    session: str
    block: int | None
    layer: int | None
    kind: str
    turns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of ``verify``."""

    sessions: int
    blocks: int
    damage: tuple[Damage, ...] = ()

    @property
    def ok(self) -> bool:
        """True if nothing is damaged."""
        return not self.damage

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with ``ok``."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of generation: a token id and the text it made readable (may be empty inside a UTF-8 character)."""

    token: int
    text: str
