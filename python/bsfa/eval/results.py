"""The results file: JSON lines, one record a line, written as soon as it is measured.

The first line is the header. A later record of the same key replaces an earlier one, so a file is
only ever appended to: whatever interrupts a run loses at most the line that was being written.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bsfa import policies
from bsfa._core import write_file
from bsfa.errors import FileError, FormatError

__all__ = [
    "FORMAT",
    "MODES",
    "VERSION",
    "Ablation",
    "AblationPrompt",
    "Density",
    "Device",
    "Failed",
    "Header",
    "Map",
    "Model",
    "Point",
    "Prompt",
    "Record",
    "Results",
    "Thresholds",
    "append",
    "create",
    "read",
    "replace_header",
]

FORMAT = "bsfa-eval"
VERSION = 1
MODES = tuple(policies.ATTENTIONS)
LABEL = "RULER-like"
"""In every output: the tasks follow RULER, but their texts and words are not those of RULER."""

Number = int | float
"""What a mode is set by: its budget in blocks, or its parameter (`bsfa.policies`)."""
Key = tuple[str, int, str, Number | None]
"""(task, length in tokens, mode, what it is set by; None for dense)."""


@dataclass(frozen=True)
class Model:
    """The model under evaluation."""

    name: str
    layers: int
    heads_q: int
    heads_kv: int
    head_dim: int
    context: int
    """Longest prompt with its answer, tokens."""


@dataclass(frozen=True)
class Device:
    """What it ran on."""

    type: str
    """cpu or cuda."""
    name: str
    driver: str = ""


@dataclass(frozen=True)
class Thresholds:
    """The threshold table that was used."""

    file: str
    sha256: str
    budgets: list[int]
    calibrated_on: list[str]
    """Categories of the calibration samples: no task of the sweep is among them."""
    max_seqlen: int


@dataclass(frozen=True)
class Header:
    """The first line: what every point of the file has in common."""

    kind: ClassVar[str] = "header"
    created: str
    """ISO 8601 date."""
    model: Model
    versions: dict[str, str]
    """Of bsfa, torch, transformers, python, lm_eval ("" where it is not installed); "commit" is
    what bsfa was built from (`bsfa.provenance`)."""
    device: Device
    dtype: str
    threads: int
    seed: int
    thresholds: Thresholds | None
    tasks: list[str]
    prompts_per_point: int
    label: str = LABEL
    settings: dict[str, Any] = field(default_factory=dict)
    """Whatever else decides what a point means: chat template, haystack, answer length."""
    format: str = FORMAT
    version: int = VERSION


@dataclass(frozen=True)
class Prompt:
    """One prompt of a point."""

    id: int
    """From seed, task and length alone: the same prompt has the same id in every mode."""
    score: float
    """0 to 1, by the harness's own rule."""
    depth: float | None = None
    """Where the needle stands, 0 to 1; None where there is no single one."""
    density: float | None = None
    """Kept over visible blocks of this prompt, over all layers and heads."""


@dataclass(frozen=True)
class Density:
    """Kept over visible blocks of a prefill."""

    predicted: float | None
    measured: float
    """Mean over the prompts."""
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One measured point."""

    kind: ClassVar[str] = "point"
    task: str
    length: int
    mode: str
    budget: Number | None
    prompts: list[Prompt]
    density: Density
    density_by_head: list[list[float]]
    """[layers][query heads], mean over the prompts; an empty row where a layer was not gated."""
    peak_memory_bytes: int
    ttft_s: list[float] = field(default_factory=list)
    """Seconds to the first token, one prompt a prefill, after warm-up; on held-out samples."""
    attention_s: list[float] = field(default_factory=list)
    """Seconds of these prefills that were attention, summed over the layers."""
    answers: list[str] = field(default_factory=list)
    """The generated texts in the order of prompts; may be left out."""

    @property
    def key(self) -> Key:
        """Identifies the point in a file."""
        return self.task, self.length, self.mode, self.budget

    @property
    def accuracy(self) -> float:
        """Mean score, 0 to 1."""
        return sum(prompt.score for prompt in self.prompts) / len(self.prompts)


@dataclass(frozen=True)
class Failed:
    """A point that could not be measured; a later point of the same key replaces it."""

    kind: ClassVar[str] = "failed"
    task: str
    length: int
    mode: str
    budget: Number | None
    error: str

    @property
    def key(self) -> Key:
        """Identifies the point in a file."""
        return self.task, self.length, self.mode, self.budget


@dataclass(frozen=True)
class Map:
    """The kept blocks of one head over one prompt."""

    kind: ClassVar[str] = "map"
    task: str
    length: int
    mode: str
    budget: Number | None
    layer: int
    head: int
    prompt: int
    """Its id."""
    q_blocks: int
    k_blocks: int
    rows: list[str]
    """By query block, kept bits in hexadecimal: the highest bit of the first digit is block 0."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Identifies the map in a file."""
        return self.task, self.length, self.mode, self.budget, self.layer, self.head, self.prompt

    def kept(self) -> list[list[bool]]:
        """[query blocks][key/value blocks]."""
        return [
            [
                bool(int(row[block // 4], 16) >> (3 - block % 4) & 1)
                for block in range(self.k_blocks)
            ]
            for row in self.rows
        ]

    @staticmethod
    def pack(kept: list[list[bool]]) -> list[str]:
        """The rows of a map from [query blocks][key/value blocks]."""
        rows = []
        for row in kept:
            bits = "".join("1" if bit else "0" for bit in row)
            bits += "0" * (-len(bits) % 4)
            rows.append("".join(f"{int(bits[i : i + 4], 2):x}" for i in range(0, len(bits), 4)))
        return rows


@dataclass(frozen=True)
class AblationPrompt:
    """One prompt of an ablation: the quantities of `Ablation`."""

    id: int
    """The same prompt has the same id in every setting."""
    density: float
    error: float | None = None
    agreement: float | None = None
    perplexity_change: float | None = None


@dataclass(frozen=True)
class Ablation:
    """One setting of an ablation."""

    kind: ClassVar[str] = "ablation"
    name: str
    """samples, domain, position or gate_block."""
    setting: str
    budget: int
    density: float
    density_predicted: float | None
    error: float | None
    """Mean relative L2 error of the attention output."""
    agreement: float | None
    """Share of tokens whose most likely successor is that of dense attention."""
    perplexity_change: float | None
    """Perplexity over that of dense attention, less 1."""
    n: int
    """Prompts."""
    length: int | None = None
    """Of the prompts, tokens."""
    prompts: list[AblationPrompt] = field(default_factory=list)

    @property
    def key(self) -> tuple[Any, ...]:
        """Identifies the setting in a file."""
        return self.name, self.setting, self.budget


Record = Header | Point | Failed | Map | Ablation
_KINDS: dict[str, type[Any]] = {c.kind: c for c in (Header, Point, Failed, Map, Ablation)}


@dataclass
class Results:
    """A results file as it stands: the last record of each key."""

    path: str
    header: Header
    points: dict[Key, Point] = field(default_factory=dict)
    failed: dict[Key, Failed] = field(default_factory=dict)
    maps: dict[tuple[Any, ...], Map] = field(default_factory=dict)
    ablations: dict[tuple[Any, ...], Ablation] = field(default_factory=dict)
    torn: str | None = None
    """What was found wrong with the last line, if it was not written whole."""

    def add(self, record: Record) -> None:
        """Takes a record in; it replaces one of the same key."""
        if isinstance(record, Point):
            self.points[record.key] = record
            self.failed.pop(record.key, None)
        elif isinstance(record, Failed):
            if record.key not in self.points:
                self.failed[record.key] = record
        elif isinstance(record, Map):
            self.maps[record.key] = record
        elif isinstance(record, Ablation):
            self.ablations[record.key] = record
        else:
            raise FormatError(f"{self.path}: a second header")


def _encode(record: Record) -> str:
    return json.dumps({"kind": record.kind, **dataclasses.asdict(record)}, allow_nan=False)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """The JSON value as the annotated type of a field, or a refusal that names the field."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        *others, last = (option for option in inner if option is not type(None))
        for option in others:
            if type(value) is option:
                return value
        return _convert(last, value, where)
    if origin is list and isinstance(value, list):
        return [_convert(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {k: _convert(inner[1], item, f"{where}.{k}") for k, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _build(typing.cast(type, kind), value, where)
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and (kind is bool or not isinstance(value, bool))
    ):
        return value
    name = getattr(kind, "__name__", str(kind))
    raise FormatError(f"{where} is {json.dumps(value)[:80]}; expected {name}")


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    arguments = {}
    for entry in dataclasses.fields(cls):
        name = f"{where}.{entry.name}"
        if entry.name in values:
            arguments[entry.name] = _convert(hints[entry.name], values[entry.name], name)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise FormatError(f"{name} is missing")
    return cls(**arguments)


def _decode(line: str, where: str) -> Record:
    values = json.loads(line)
    if not isinstance(values, dict) or values.get("kind") not in _KINDS:
        found = values.get("kind") if isinstance(values, dict) else type(values).__name__
        raise FormatError(f"{where}: kind is {found!r}; expected one of {', '.join(_KINDS)}")
    return _build(_KINDS[values["kind"]], values, f"{where}: {values['kind']}")


def _check_header(line: str, path: str) -> Header:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or values.get("kind") != "header":
        raise FormatError(
            f"{path}: not a results file of `bsfa eval`; expected a first line of kind 'header'"
        )
    for name, expected in (("format", FORMAT), ("version", VERSION)):
        if values.get(name) != expected:
            raise FormatError(
                f"{path}: {name} is {values.get(name)!r}; this bsfa reads {expected!r}"
            )
    return _build(Header, values, f"{path}: header")


def read(path: str | os.PathLike[str]) -> Results:
    """A results file. Refuses another format or version; `torn` reports a last line cut short."""
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from error
    lines = text.split("\n")
    tail = lines.pop()  # empty if the last line was written whole
    if not lines:
        raise FormatError(
            f"{path}: "
            + ("its header was not written whole" if tail else "is empty")
            + "; expected a results file of `bsfa eval`"
        )
    results = Results(path, _check_header(lines[0], path))
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        try:
            results.add(_decode(line, f"{path}:{number}"))
        except json.JSONDecodeError as error:
            raise FormatError(f"{path}:{number}: not JSON: {error}") from error
    if tail:
        results.torn = f"{path}: the last line was not written whole and is left out"
    return results


def create(path: str | os.PathLike[str], header: Header) -> None:
    """A new results file with its header; refuses to overwrite."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            _write(file, header)
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: cannot be written: {error.strerror}") from error


def append(path: str | os.PathLike[str], record: Record) -> None:
    """Adds a record, on the disk when this returns. Removes the rest of a torn line before it."""
    try:
        with open(path, "r+b") as raw:
            _cut_torn_line(raw)
        with open(path, "a", encoding="utf-8") as file:
            _write(file, record)
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: cannot be written: {error.strerror}") from error


def replace_header(path: str | os.PathLike[str], header: Header) -> None:
    """The same file with another header: as before, or with it, whenever this is interrupted."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            rest = file.read().partition("\n")[2]
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: cannot be read: {error.strerror}") from error
    write_file(os.fspath(path), (_encode(header) + "\n" + rest).encode())


def _write(file: typing.TextIO, record: Record) -> None:
    file.write(_encode(record) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _cut_torn_line(file: typing.BinaryIO) -> None:
    """Shortens the file to the end of its last whole line."""
    end = file.seek(0, os.SEEK_END)
    size = end
    while end > 0:
        begin = max(0, end - 65536)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end != size:
        file.truncate(end)
