"""Running a model once on a few tokens to learn its attention layers, and to prove that their keys can be taken before rotation.

Knows what transformers' modules do when called; nothing of memory. Every claim in a LayerSpec was observed here.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from agent_memory.errors import UnsupportedModel
from agent_memory.model.interface import PROBE, ROUTE, LayerSpec, attention_configs, implementation, register
from agent_memory.model.kv_cache import PassingCache
from agent_memory.model.mask_rule import MaskRule, mask_fault, native_window
from agent_memory.model.rope import Pair, Rope, Rotate, half_rotation, rotations

_PROBE_TOKENS = 8
_ATTENTION_TYPES = {"full_attention", "sliding_attention", "attention"}
_HARMLESS = {"dropout", "scaling", "sliding_window", "softcap", "s_aux", "position_ids", "is_causal", "use_cache", "output_attentions"}


@dataclass
class Layer:
    """A certified layer and the means to rotate for it."""

    spec: LayerSpec
    module: nn.Module
    rope: Rope | None = None
    rotate: Rotate | None = None


@dataclass
class _Observed:
    """One call of the attention function."""

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    rule: MaskRule | None
    options: dict[str, Any]


@dataclass
class _Probe:
    """Records attention calls, what their modules were called with, and which modules made rotary pairs."""

    calls: list[_Observed] = field(default_factory=list)
    inputs: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    pairs: list[tuple[Pair, Rope]] = field(default_factory=list)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        rule = getattr(mask, "agent_memory_rule", None)
        self.calls.append(_Observed(module, q, k, v, rule, options))
        return v.transpose(1, 2).repeat_interleave(q.shape[1] // v.shape[1], dim=2)

    def see_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if "position_embeddings" not in kwargs:
            return None
        self.inputs[module] = (args, kwargs)
        return args, {**kwargs, ROUTE: self}

    def see_outputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2 and all(isinstance(part, Tensor) for part in output):
            if any(isinstance(value, Tensor) and not value.is_floating_point() for value in (*args, *kwargs.values())):
                self.pairs.append((output, Rope(module, args, kwargs)))

    def settle(self) -> None:
        """Put the rotary modules back as they were. What made a pair and cannot be asked for another is none: a whole layer, say."""
        made, self.pairs = self.pairs, []
        for pair, rope in made:
            with contextlib.suppress(Exception):
                rope.settle()
                self.pairs.append((pair, rope))

    def rope_of(self, pair: Pair) -> Rope | None:
        same = (rope for made, rope in self.pairs if made[0] is pair[0] and made[1] is pair[1])
        equal = (rope for made, rope in self.pairs if _equal(made[0], pair[0]) and _equal(made[1], pair[1]))
        return next(same, None) or next(equal, None)


def embeddings(model: PreTrainedModel) -> Tensor:
    """The input embedding table ``[vocabulary, hidden]``."""
    table = model.get_input_embeddings().weight
    if not isinstance(table, Tensor):
        raise UnsupportedModel(f"{type(model).__name__} has no table of input embeddings")
    return table


def window_of(model: PreTrainedModel) -> int:
    """Positions the model was made for: ``max_position_embeddings`` of its text config.

    Raises:
        UnsupportedModel: the config does not say.
    """
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(window, int) or window < 2:
        raise UnsupportedModel(f"{type(model).__name__}: its config has no max_position_embeddings, so its window is unknown")
    return window


def certify(model: PreTrainedModel, *, sliding: Literal["recall", "native"] = "recall") -> list[Layer]:
    """Examine every attention layer of ``model`` in the order they run. Layers that fail say why in ``spec.verdict``.

    Raises:
        UnsupportedModel: something about the model as a whole, or a layer that is not attention.
    """
    register()
    _refuse_other_layers(model)
    positions = torch.linspace(0, window_of(model) - 1, _PROBE_TOKENS).round().long().to(model.device)
    probe = _Probe()
    cache = PassingCache(0)
    with torch.no_grad(), implementation(attention_configs(model), PROBE):
        _observe(model, positions, probe, cache)
        layers = _examine_all(model, probe, cache)
    _refuse_silent_layers(model, layers)
    return _decide_recall(model, layers, sliding)


def _refuse_other_layers(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    for index, kind in enumerate(getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()):
        if kind not in _ATTENTION_TYPES:
            raise UnsupportedModel(
                f"layer {index} of {type(model).__name__} is {kind!r}; only full and sliding-window attention can be attached"
            )
    if model.training:
        raise UnsupportedModel(f"{type(model).__name__} is in training mode; call model.eval() first")


def _observe(model: PreTrainedModel, positions: Tensor, probe: _Probe, cache: PassingCache) -> None:
    """Run a few tokens at positions spread over the window. A longrope or dynamic module is put back as it was."""
    vocabulary = embeddings(model).shape[0]
    ids = (torch.arange(_PROBE_TOKENS, device=model.device) * 37 + 11) % vocabulary
    hooks = [module.register_forward_pre_hook(probe.see_inputs, with_kwargs=True) for module in model.modules()]
    hooks += [module.register_forward_hook(probe.see_outputs, with_kwargs=True) for module in model.modules()]
    try:
        model.base_model(input_ids=ids[None], position_ids=positions[None], past_key_values=cache, use_cache=True)
    except UnsupportedModel:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UnsupportedModel(f"{type(model).__name__} cannot run with this package's attention: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
        probe.settle()


def _examine_all(model: PreTrainedModel, probe: _Probe, cache: PassingCache) -> list[Layer]:
    names = {module: name for name, module in model.named_modules()}
    passed, ropes, layers = set(cache.passed), list[Rope](), list[Layer]()
    modules = [call.module for call in probe.calls]
    for index, call in enumerate(list(probe.calls)):
        layer = Layer(_describe(index, names[call.module], call), call.module)
        reason = (
            _structure_fault(call, passed, modules)
            or mask_fault(call.rule, layer.spec.sliding_window)
            or _rotation_fault(layer, call, probe)
        )
        number = -1
        if layer.rope is not None:
            number = next((i for i, rope in enumerate(ropes) if rope.same_call(layer.rope)), len(ropes))
            if number == len(ropes):
                ropes.append(layer.rope)
            layer.rope = ropes[number]
        changed = {"verdict": reason or "ok", "rope": number, "rotates": layer.rope is not None}
        layer.spec = LayerSpec(**{**vars(layer.spec), **changed})
        layers.append(layer)
    return layers


def _describe(index: int, name: str, call: _Observed) -> LayerSpec:
    window = native_window(call.rule)
    softcap = call.options.get("softcap")
    return LayerSpec(
        index=index,
        name=name,
        kind="full" if window is None else "sliding",
        query_heads=call.q.shape[1],
        kv_heads=call.k.shape[1],
        head_dim=call.k.shape[-1],
        sliding_window=window,
        rotates=False,
        sinks=call.options.get("s_aux") is not None,
        softcap=None if softcap is None else float(softcap),
        rope=-1,
        recalls=window is None,
        verdict="ok",
        notes="",
    )


def _structure_fault(call: _Observed, passed: set[int], modules: list[nn.Module]) -> str | None:
    strange = [name for name, value in call.options.items() if isinstance(value, Tensor) and name not in _HARMLESS]
    if modules.count(call.module) > 1:
        return "runs more than once in a forward"
    if strange:
        return f"its attention takes {', '.join(strange)}, which memory does not know"
    if id(call.k) not in passed:
        return "attends with keys of another layer, or changes its keys after they are cached"
    if call.k.shape != call.v.shape:
        return f"keys {list(call.k.shape)} and values {list(call.v.shape)} differ in shape (latent attention)"
    if call.q.shape[1] % call.k.shape[1] or call.q.shape[-1] != call.k.shape[-1]:
        return f"{call.q.shape[1]} query heads cannot share {call.k.shape[1]} KV heads"
    return None


def _rotation_fault(layer: Layer, call: _Observed, probe: _Probe) -> str | None:
    """Run the module again without rotation, on the same hidden states, and look for a rotation that makes up the difference."""
    args, kwargs = probe.inputs[call.module]
    pair = kwargs["position_embeddings"]
    if pair is None:
        return None
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        return "its rotary tables are not a pair of cosines and sines"
    again = _Probe()
    call.module(*args, **{**kwargs, "position_embeddings": identity(pair), ROUTE: again})
    bare = again.calls[0]
    if _equal(bare.q, call.q) and _equal(bare.k, call.k):
        return None
    layer.rope = probe.rope_of(pair)
    if layer.rope is None:
        return "its rotary tables come from no module that can be asked again"
    for rotate in rotations(call.module):
        if _explains(rotate, bare, call, pair):
            layer.rotate = half_rotation if _same(half_rotation, rotate, bare.k, pair) else rotate
            return None
    return "changes its queries or keys after rotation; keys before rotation cannot be reached"


def _explains(rotate: Rotate, bare: _Observed, real: _Observed, pair: Pair) -> bool:
    try:
        return _equal(rotate(bare.k, *pair), real.k) and _equal(rotate(bare.q, *pair), real.q) and _equal(bare.v, real.v)
    except RuntimeError:
        return False


def _same(one: Rotate, other: Rotate, keys: Tensor, pair: Pair) -> bool:
    """Whether two ways of rotating differ in rounding only; asked in fp32, where it is small."""
    cos, sin = pair[0].float(), pair[1].float()
    try:
        return _equal(one(keys.float(), cos, sin), other(keys.float(), cos, sin))
    except RuntimeError:
        return False


def identity(pair: Pair) -> Pair:
    """The pair that rotates nothing, in the shape of ``pair`` and without its memory."""
    return pair[0].new_ones(()).expand_as(pair[0]), pair[1].new_zeros(()).expand_as(pair[1])


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to a few roundings of the larger one's greatest entry."""
    if a.shape != b.shape:
        return False
    a, b = a.float(), b.to(a.device).float()
    roundings = 8 * torch.finfo(a.dtype).eps
    return bool((a - b).abs().max() <= roundings * b.abs().max())


def _refuse_silent_layers(model: PreTrainedModel, layers: list[Layer]) -> None:
    """A decoder layer whose attention was never seen mixes tokens in a way memory cannot reach."""
    if not layers:
        raise UnsupportedModel(f"no attention of {type(model).__name__} goes through transformers' attention interface")
    attention = {layer.module for layer in layers}
    for name, stack in model.named_modules():
        if isinstance(stack, nn.ModuleList):
            silent = [index for index, child in enumerate(stack) if not attention.intersection(child.modules())]
            if silent and len(silent) < len(stack):
                raise UnsupportedModel(f"{name}.{silent[0]} ({type(stack[silent[0]]).__name__}) has no attention that can be attached")


def _decide_recall(model: PreTrainedModel, layers: list[Layer], sliding: Literal["recall", "native"]) -> list[Layer]:
    if any(layer.spec.kind == "full" for layer in layers):
        return layers
    if sliding == "native":
        raise UnsupportedModel(
            f"{type(model).__name__} has sliding-window attention only, so with sliding='native' no layer could recall; "
            f"use sliding='recall' to recall in its sliding layers"
        )
    for layer in layers:
        layer.spec = LayerSpec(**{**vars(layer.spec), "recalls": True, "notes": "recalls in place of its native window"})
    return layers
