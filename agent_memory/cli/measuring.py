"""What every measurement is handed by the command line: Runtimes of one loaded model.

Knows settings and Runtimes; does not know what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_memory.cli.command import Call

if TYPE_CHECKING:
    from agent_memory.runtime import Runtime
    from agent_memory.types import Budget


def measuring_runtimes(call: Call, **fixed: Any) -> Callable[..., Runtime]:
    """Makes Runtimes by method, Store and budget; the model is loaded once, with the first of them.

    Args:
        call: whose settings they have.
        fixed: settings that a measurement decides.
    """
    from agent_memory.opening import LoadedModel, open_runtime

    loaded: LoadedModel | None = None

    def make_runtime(*, method: str, store: Path, budget: Budget | None = None) -> Runtime:
        nonlocal loaded
        sizes = {} if budget is None else {"device": budget.device, "host": budget.host}
        settings = call.settings.model_copy(update={"method": method, "store": str(store), **sizes, **fixed})
        runtime = open_runtime(settings, loaded)
        loaded = LoadedModel(runtime.model, runtime.tokenizer, runtime.model_id)  # not the Runtime: its Tiers would stay in memory
        return runtime

    return make_runtime
