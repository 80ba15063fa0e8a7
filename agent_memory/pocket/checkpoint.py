"""A training run on disk: one safetensors file with every tensor, and the plain facts in its metadata.

Knows names, tensors and optimiser states; nothing of models or data. Reading one runs no code.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FACTS = "facts"


def save(file: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all."""
    temporary = file.with_suffix(".tmp")
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, temporary, {FACTS: json.dumps(facts)})
    os.replace(temporary, file)


def load(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a checkpoint."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(opened.metadata()[FACTS])  # noqa: SIM118


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def optimiser_tensors(optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Every tensor of the optimisers' states, as ``optimiser.<which>.<parameter>.<name>``."""
    return {
        f"optimiser.{which}.{parameter}.{name}": torch.as_tensor(value)
        for which, optimiser in enumerate(optimisers)
        for parameter, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def restore_optimisers(optimisers: Sequence[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]) -> None:
    """Put those tensors back."""
    for which, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in part(tensors, f"optimiser.{which}").items():
            parameter, name = key.split(".", 1)
            state.setdefault(int(parameter), {})[name] = tensor
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
