"""Every setting of kvstore: its meaning, default and range, validated as a whole before anything starts.

Where a value comes from, strongest first: arguments (command line flags), KVSTORE_<SECTION>_<KEY>
environment variables, a TOML file, the defaults below. One wrong or unknown key anywhere refuses the whole
configuration, and the error lists every one of them. `deploy/kvstore.toml` is the commented sample.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ByteSize,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from kvstore.errors import ConfigInvalid
from kvstore.evicting import Policy
from kvstore.section import TIER_NBYTES_MAX
from kvstore.section import Section as _Section
from kvstore.serving import Serve
from kvstore.tracing import Trace

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PAGE_NBYTES = 4 * KIB
SEGMENT_NBYTES_MIN, SEGMENT_NBYTES_MAX = MIB, 256 * MIB
SEGMENTS_MIN = 4  # fewer cannot be recycled
ENTRIES_MIN, ENTRIES_MAX = 65_536, 2**31
NBYTES_PER_ENTRY = 64 * KIB  # entries_max = 0 expects blocks of this size or larger

PREFIX = "KVSTORE_"
# Not settings, though they begin alike: the switch of the sanitizer build, what the tests are told, and what container
# runtimes set for a service that somebody named kvstore (KVSTORE_SERVICE_HOST, KVSTORE_PORT_7070_TCP_ADDR).
FOREIGN = re.compile(
    r"KVSTORE_(SANITIZE|TRACES|KILLS(_SEED)?|ATTACH_(S|PINS|KILLS|SEED)|SOAK_(S|SEED)|"
    r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP)(_.+)?)?))"
)


class Host(_Section):
    """Host memory: the nearest tier that is always there."""

    nbytes: ByteSize = Field(
        default=ByteSize(GIB),
        ge=PAGE_NBYTES,
        le=TIER_NBYTES_MAX,
        description="Size of the arena in host memory.",
    )
    prefault: Literal["background", "now", "off"] = Field(
        default="background",
        description="When the arena's pages are taken from the system: while serving, before it, or at use.",
    )


class Disk(_Section):
    """The disk tier: preallocated segments in one folder."""

    path: str | None = Field(
        default=None,
        description='Folder of the tier; "" is a temporary folder, removed when the store closes.',
    )
    nbytes: ByteSize = Field(
        default=ByteSize(8 * GIB),
        ge=0,
        le=TIER_NBYTES_MAX,
        description="Size of the tier; 0 means no disk tier.",
    )
    segment_nbytes: ByteSize = Field(
        default=ByteSize(0),
        ge=0,
        le=SEGMENT_NBYTES_MAX,
        description="Size of one segment, a power of two from 1 MiB; 0 chooses it from the tier's size.",
    )
    free_nbytes_min: ByteSize = Field(
        default=ByteSize(GIB),
        ge=0,
        le=TIER_NBYTES_MAX,
        description="Bytes of the file system that new segments must leave free; 0 means none.",
    )
    io_threads: int = Field(default=4, ge=1, le=64, description="Threads that read and write where io_uring is absent.")

    @field_validator("path", mode="before")
    @classmethod
    def _folder(cls, value: object) -> object:
        folder = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(folder, str) and "\0" in folder:
            raise PydanticCustomError("rule", "a path without a zero byte")
        return folder or None

    @field_validator("segment_nbytes")
    @classmethod
    def _whole_segments(cls, value: ByteSize, info: ValidationInfo) -> ByteSize:
        tier_nbytes = info.data.get("nbytes", TIER_NBYTES_MAX) or TIER_NBYTES_MAX
        if value and (value < SEGMENT_NBYTES_MIN or value.bit_count() != 1):
            raise PydanticCustomError("rule", "0, or a power of two from 1 MiB to 256 MiB")
        if value * SEGMENTS_MIN > tier_nbytes:
            raise PydanticCustomError("rule", f"at most 1/{SEGMENTS_MIN} of disk.nbytes")
        return value


class Index(_Section):
    """The index of all stored blocks, and the leases on them."""

    entries_max: int = Field(
        default=0,
        ge=0,
        le=ENTRIES_MAX,
        description="Blocks the index can hold; 0 derives it from the tiers' sizes.",
    )
    leases_max: int = Field(
        default=65_536, ge=64, le=1 << 20, description="Blocks that may be under lease at one time."
    )
    events_max: int = Field(
        default=65_536, ge=0, le=1 << 24, description="Latest events kept for those who watch; 0: nobody can watch."
    )


class Mover(_Section):
    """Movement between tiers: queues, budgets and times."""

    writeback_queue_blocks_max: int = Field(
        default=65_536, ge=1, le=1 << 20, description="Blocks that may wait to be written to the disk tier."
    )
    promote_queue_blocks_max: int = Field(
        default=16_384, ge=1, le=1 << 20, description="Blocks that may wait to be read back into host memory."
    )
    write_nbytes_per_s: ByteSize = Field(
        default=ByteSize(0),
        ge=0,
        le=TIB,
        description="Bytes a second that write-back may write; 0 means no limit.",
    )
    scrub_nbytes_per_s: ByteSize = Field(
        default=ByteSize(4 * MIB),
        ge=0,
        le=TIB,
        description="Bytes a second of the disk tier that are read to find rotten blocks; 0 means never.",
    )
    write_nbytes_per_day: ByteSize = Field(
        default=ByteSize(0),
        ge=0,
        le=1024 * TIB,
        description="Bytes a day that may be written to the disk tier, a quarter of them at once; 0 means no limit.",
    )
    reservation_ttl_ms: int = Field(
        default=30_000,
        ge=1,
        le=86_400_000,
        description="After this time a reservation without its commit is undone.",
    )
    put_wait_ms: int = Field(
        default=0,
        ge=0,
        le=60_000,
        description="How long a put, or a lease of far blocks, may wait for write-back to make room; 0: not at all.",
    )
    prefill_tokens_per_s: int = Field(
        default=0,
        ge=0,
        le=10**9,
        description="How fast callers compute; far blocks that load more slowly are left out. 0: not known, none are.",
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is in force, for `--show-config`."""

    key: str  # "host.nbytes"
    value: object
    origin: str  # "default", "argument", "file PATH" or "environment KVSTORE_HOST_NBYTES"
    allowed: str
    description: str


class Config(BaseSettings):
    """All settings; immutable. `Config()` takes arguments alone, `Config.load` also file and environment."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=PREFIX, enable_decoding=False)

    host: Host = Host()
    disk: Disk = Disk()
    index: Index = Index()
    mover: Mover = Mover()
    policy: Policy = Policy()
    trace: Trace = Trace()
    serve: Serve = Serve()
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, _known_origins: Mapping[str, str] | None = None, **sections: Any) -> None:
        """Sections as mappings or objects: `Config(host={"nbytes": "2 GiB"})`. Raises ConfigInvalid."""
        origins = dict(_known_origins or dict.fromkeys(_flat(sections), "argument"))
        try:
            super().__init__(**sections)
        except ValidationError as error:
            raise _refusal([_problem(details, origins) for details in error.errors()]) from None
        self._origins.update(origins)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, **overrides: Any) -> Self:
        """Read the TOML file at `path` if one is named, then the environment, then `overrides`.

        Overrides are sections (`host={"nbytes": "2 GiB"}`) or single settings
        (`**{"host.nbytes": "2 GiB"}`); a value of None means not given. Raises ConfigInvalid with every wrong
        key, its value, what is allowed and where it came from.
        """
        merged: dict[str, Any] = {}
        origins: dict[str, str] = {}
        given = {key: value for key, value in _flat(overrides).items() if value is not None}
        for layer, origin in ((_file(path), f"file {path}"), (_environment(cls), ""), (given, "argument")):
            for key, value in _flat(layer).items():
                section, _, name = key.partition(".")
                within = merged.setdefault(section, {} if name else value)
                if name and isinstance(within, dict):
                    within[name] = value
                origins[key] = origin or f"environment {_variable(key)}"
                origins.setdefault(section, origins[key])  # named when the whole section is wrong
        return cls(_known_origins=origins, **merged)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: what else `load` reads, it reads itself, to know where each value came from."""
        return (init_settings,)

    @property
    def entries_max(self) -> int:
        """Blocks the index is made for: `index.entries_max`, or if that is 0 one per 64 KiB of the tiers."""
        derived = (self.host.nbytes + self.disk.nbytes) // NBYTES_PER_ENTRY
        return self.index.entries_max or min(max(derived, ENTRIES_MIN), ENTRIES_MAX)

    def explain(self) -> Iterator[Setting]:
        """Every setting in force, with its origin."""
        for key, field in _fields().items():
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            origin = self._origins.get(key, "default")
            yield Setting(key, value, origin, _allowed(field), field.description or "")

    def __eq__(self, other: object) -> bool:
        """Equal settings are equal, wherever they came from."""
        return isinstance(other, Config) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(dict(self).values()))


def _fields() -> dict[str, FieldInfo]:
    """Every setting by its key, in the order of the sections."""
    fields: dict[str, FieldInfo] = {}
    for name, section in Config.model_fields.items():
        settings = cast(type[BaseModel], section.annotation).model_fields
        fields |= {f"{name}.{key}": field for key, field in settings.items()}
    return fields


def _flat(layer: Mapping[str, Any]) -> dict[str, Any]:
    """{"host": {"nbytes": 1}} and {"host.nbytes": 1} alike as {"host.nbytes": 1}."""
    flat: dict[str, Any] = {}
    for name, value in layer.items():
        values = value.model_dump(exclude_unset=True) if isinstance(value, _Section) else value
        if isinstance(values, Mapping) and values:
            flat |= {f"{name}.{key}": inner for key, inner in values.items()}
        else:
            flat[name] = value
    return flat


def _file(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file at {path}")
        return TomlConfigSettingsSource(Config, toml_file=Path(path))()
    except (OSError, ValueError) as error:  # tomllib's error is a ValueError, and says line and column
        kind = "is not TOML" if isinstance(error, ValueError) else "cannot be read"
        raise ConfigInvalid(f"configuration: file {path} {kind}: {error}") from None


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", "_").upper()


def _environment(settings: type[BaseSettings]) -> dict[str, Any]:
    """What KVSTORE_* variables say; one that names no section is kept by its own name, to be refused."""
    layer = EnvSettingsSource(settings, env_nested_delimiter="_", env_nested_max_split=1)()
    sections = tuple(_variable(section) + "_" for section in settings.model_fields)
    names = {name.upper(): name for name in os.environ}
    strangers = [name for name in names if name.startswith(PREFIX) and not name.startswith(sections)]
    unknown = [name for name in strangers if not FOREIGN.fullmatch(name)]
    return layer | {name.removeprefix(PREFIX).lower(): os.environ[names[name]] for name in unknown}


def _refusal(problems: list[str]) -> ConfigInvalid:
    if len(problems) == 1:
        return ConfigInvalid(f"configuration: {problems[0]}")
    return ConfigInvalid(f"configuration: {len(problems)} settings are wrong\n  " + "\n  ".join(problems))


def _problem(details: ErrorDetails, origins: Mapping[str, str]) -> str:
    """One wrong key in words: key, value, where it came from, what is allowed."""
    key = ".".join(str(part) for part in details["loc"][:2])
    given = f"{key} = {details['input']!r} ({origins.get(key, 'argument')})"
    fields = _fields()
    if key in fields:
        rule = details["msg"] if details["type"] == "rule" else _allowed(fields[key])
        return f"{given}: must be {rule}"
    section = key.partition(".")[0]
    names = [name.partition(".")[2] for name in fields if name.startswith(section + ".")]
    if key == section and names:
        return f"{given}: must be a section with any of {', '.join(names)}"
    close = difflib.get_close_matches(key, fields, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    where = f"{section} has {', '.join(names)}" if names else f"the sections are {', '.join(Config.model_fields)}"
    return f"{given}: no such setting; {hint}{where}"


def _allowed(field: FieldInfo) -> str:
    """What a setting may be, in words."""
    kind = field.annotation
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["allowed"])
    if get_origin(kind) is Literal:
        choices = ", ".join(repr(choice) for choice in get_args(kind))
        return f"one of {choices}" if len(get_args(kind)) > 1 else choices
    if kind is bool:
        return "true or false"
    if kind is ByteSize:
        low, high = (_size(_bound(field, side)) for side in ("ge", "le"))
        return f'a size from {low} to {high}, as a number of bytes or like "8 GiB"'
    if kind is float:
        return f"a number from {_bound(field, 'ge')} to {_bound(field, 'le')}"
    if kind is int:
        return f"a whole number from {_bound(field, 'ge'):,} to {_bound(field, 'le'):,}"
    return 'a path, or "" for a temporary folder'


def _bound(field: FieldInfo, side: str) -> int:
    return next(int(getattr(rule, side)) for rule in field.metadata if hasattr(rule, side))


def _size(nbytes: int) -> str:
    return ByteSize(nbytes).human_readable(separator=" ").replace(".0", "")
