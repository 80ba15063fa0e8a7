"""What a user may set, and where it comes from: keyword, then ``AGENT_MEMORY_*``, then ``agent-memory.toml``, then default.

Knows names, types and sources; nothing of what a setting does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from agent_memory.errors import ConfigError
from agent_memory.given import without_credentials
from agent_memory.memory.sizes import parse_size
from agent_memory.types import Budget, ColdKind

PREFIX = "AGENT_MEMORY_"
TOML_FILE = "agent-memory.toml"

Size = Annotated[int, BeforeValidator(parse_size)]
Text = Annotated[str, Field(min_length=1)]


def _without_torch_prefix(name: object) -> object:
    return name.removeprefix("torch.") if isinstance(name, str) else name


DtypeName = Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_without_torch_prefix)]


class Settings(BaseSettings):
    """The settings of one process. Make them with :meth:`load`, which turns every mistake into one clear line.

    Attributes:
        store: folder (or SQLAlchemy URL) of the Store.
        namespace: tenant whose Sessions are meant.
        model: local folder, GGUF file, hub id, or ``smollm2``; None is the pocket model.
        revision: hub revision of ``model``.
        gguf_file: GGUF file in the folder or the hub's repository that ``model`` names.
        method: how memory takes part in attention.
        device: bytes the device Tier may hold; sizes may be written ``"8GiB"``.
        host: bytes the host Tier may hold.
        cold: how Blocks on the host are held: as they are, or approximately in 8 or 4 bits a number.
        prefetch: whether Blocks that will be wanted soon are read from disk in the background.
        backend: what decodes replies: ``torch`` layer by layer, ``triton`` in kernels on pages; ``auto`` takes kernels on a CUDA device.
        window: tokens the model may attend to at once; None is what it was trained for.
        attention_shares: whether Recalls say how much of a reply's attention each recalled turn got.
        border: tokens up to which a new Session attends to everything; ``auto`` measures it at start-up, ``off`` has none.
        dtype: torch dtype of the weights; None is the checkpoint's own.
        device_map: where the weights go, as in transformers.
        threads: torch threads; None leaves torch's own choice.
        trust_remote_code: whether code that ships with a hub model may run.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, toml_file=TOML_FILE, extra="forbid", frozen=True, env_ignore_empty=True, protected_namespaces=()
    )

    store: Text = "./memory"
    namespace: Text = "default"
    model: Text | None = None
    revision: Text | None = None
    gguf_file: Text | None = None
    method: Text = "recall"
    device: Size = 256 << 20
    host: Size = 256 << 20
    cold: ColdKind = "exact"
    prefetch: bool = True
    backend: Literal["auto", "torch", "triton"] = "auto"
    window: Annotated[int, Field(ge=1)] | None = None
    attention_shares: bool = True
    border: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = "auto"
    dtype: DtypeName | None = None
    device_map: Text | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    trust_remote_code: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword, environment, ``agent-memory.toml`` in the working folder; no ``.env``, no secrets folder."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, **keywords: Any) -> Settings:
        """Settings from every source; a keyword that is None counts as not given.

        Raises:
            ConfigError: a setting that is unknown or cannot be used, wherever it was written.
        """
        _refuse_unknown_variables(cls)
        _refuse_empty_names()
        try:
            return cls(**{name: value for name, value in keywords.items() if value is not None})
        except ValidationError as problem:
            raise ConfigError(without_credentials("; ".join(_one_line(error, keywords) for error in problem.errors()))) from None
        except ValueError as problem:
            raise ConfigError(f"{TOML_FILE} cannot be read: {problem}") from None

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is printed of the settings: no password in a URL."""
        return ((name, without_credentials(value)) for name, value in super().__repr_args__())

    @property
    def budget(self) -> Budget:
        """The byte budgets of the Tiers."""
        return Budget(device=self.device, host=self.host, cold=self.cold, prefetch=self.prefetch)


def _refuse_unknown_variables(settings: type[Settings]) -> None:
    known = {PREFIX + name.upper() for name in settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise ConfigError(f"unknown environment variable {unknown[0]}; known are {', '.join(sorted(known))}")


def _refuse_empty_names() -> None:
    """An empty variable counts as not set, but for those that say whose memory is meant and where it is: the default is another's."""
    for name in (PREFIX + "NAMESPACE", PREFIX + "STORE"):
        if os.environ.get(name) == "":
            raise ConfigError(f"{name}='' is empty; name one, or unset the variable to take the default")


def _one_line(error: Any, keywords: dict[str, Any]) -> str:
    name = str(error["loc"][0]) if error["loc"] else "settings"
    if keywords.get(name) is not None:
        source = f"{name}={keywords[name]!r}"
    elif PREFIX + name.upper() in {variable.upper() for variable in os.environ}:
        source = f"{PREFIX}{name.upper()}={error['input']!r}"
    else:
        source = f"{name} = {error['input']!r} in {TOML_FILE}"
    if error["type"] == "extra_forbidden":
        return f"{source}: unknown setting; known are {', '.join(Settings.model_fields)}"
    return f"{source}: {error['msg'].removeprefix('Value error, ')}"
