"""The forward of one token, captured in a CUDA graph and replayed: one launch instead of thousands.

Knows graphs and the tensors that go in and out; nothing of attention. On a device without graphs the same forward runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from agent_memory.errors import ConfigError

WARM_UP = 2
"""Forwards before a capture, on a stream of their own: kernels are compiled, libraries make their workspaces."""

Forward = Callable[[], Tensor]


class Captured:
    """Runs a forward whose inputs are tensors that stay where they are.

    Args:
        forward: makes logits; runs the same operations on the same tensors every time it is called under one key.
        capture: whether to capture it; needs a CUDA device.
    """

    def __init__(self, forward: Forward, capture: bool) -> None:
        self._forward, self._capture = forward, capture
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.captures = 0

    def forget(self) -> None:
        """Let all graphs go: the tensors are others now."""
        self._graphs = {}

    def run(self, key: Hashable) -> Tensor:
        """Logits of the forward; what ``key`` names is captured the first time, and others with the same first element are let go.

        Raises:
            ConfigError: it cannot be captured.
        """
        if not self._capture:
            return self._forward()
        if key not in self._graphs:
            self._graphs = {kept: graph for kept, graph in self._graphs.items() if _kind(kept) != _kind(key)}
            self._graphs[key] = self._captured()
        graph, logits = self._graphs[key]
        graph.replay()
        return logits

    def _captured(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on reading Blocks ahead while this one captures.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                logits = self._forward()
        except RuntimeError as error:
            raise ConfigError(f"the model's forward cannot be captured in a CUDA graph: {error}; choose backend='torch'") from error
        self.captures += 1
        return graph, logits


def _kind(key: Hashable) -> Hashable:
    return key[0] if isinstance(key, tuple) else key
