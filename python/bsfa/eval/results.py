"""The results file: JSON lines, one record a line, written as soon as it is measured.

The first line is the header. A later record of the same key replaces an earlier one, so a file is
only ever appended to: whatever interrupts a run loses at most the line that was being written. One
process writes a file at a time (`Writer`); any number may read it.

What is read is checked field by field, by type and by range (`bsfa.eval.fields`), so that whatever
works with the records can rely on them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar

from bsfa import policies
from bsfa._core import write_file
from bsfa.errors import FileError, FormatError
from bsfa.eval.fields import (
    Change,
    Count,
    Name,
    Positive,
    Seconds,
    Setting,
    Share,
    Whole,
    Words,
    build,
    parse,
)
from bsfa.files import Lock, read_bytes
from bsfa.text import path_text, said, shown

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
    "Writer",
    "append",
    "create",
    "read",
]

FORMAT = "bsfa-eval"
VERSION = 1
MODES = tuple(policies.ATTENTIONS)
_HEXADECIMAL = frozenset("0123456789abcdef")
LABEL = "RULER-like"
"""In every output: the tasks follow RULER, but their texts and words are not those of RULER."""

Number = Setting
"""What a mode is set by: its budget in blocks, or its parameter (`bsfa.policies`)."""
Key = tuple[str, int, str, Number | None]
"""(task, length in tokens, mode, what it is set by; None for dense)."""


@dataclass(frozen=True)
class Model:
    """The model under evaluation."""

    name: Words
    layers: Positive
    heads_q: Positive
    heads_kv: Positive
    head_dim: Positive
    context: Count
    """Longest prompt with its answer, tokens."""


@dataclass(frozen=True)
class Device:
    """What it ran on."""

    type: Name
    """cpu or cuda."""
    name: Words
    driver: Words = ""


@dataclass(frozen=True)
class Thresholds:
    """The threshold table that was used."""

    file: Words
    sha256: Name
    budgets: list[Positive]
    calibrated_on: list[Name]
    """Categories of the calibration samples: no task of the sweep is among them."""
    max_seqlen: Positive


@dataclass(frozen=True)
class Header:
    """The first line: what every point of the file has in common."""

    kind: ClassVar[str] = "header"
    created: Name
    """ISO 8601 date."""
    model: Model
    versions: dict[str, Words]
    """Of bsfa, torch, transformers, python, lm_eval ("" where it is not installed); "commit" is
    what bsfa was built from (`bsfa.provenance`)."""
    device: Device
    dtype: Name
    threads: Count
    seed: Whole
    thresholds: Thresholds | None
    tasks: list[Name]
    prompts_per_point: Count
    label: Name = LABEL
    settings: dict[str, Any] = field(default_factory=dict)
    """Whatever else decides what a point means: chat template, haystack, answer length."""
    format: str = FORMAT
    version: int = VERSION


@dataclass(frozen=True)
class Prompt:
    """One prompt of a point."""

    id: Whole
    """From seed, task and length alone: the same prompt has the same id in every mode."""
    score: Share
    """0 to 1, by the harness's own rule."""
    depth: Share | None = None
    """Where the needle stands, 0 to 1; None where there is no single one."""
    density: Share | None = None
    """Kept over visible blocks of this prompt, over all layers and heads."""


@dataclass(frozen=True)
class Density:
    """Kept over visible blocks of a prefill."""

    predicted: Share | None
    measured: Share
    """Mean over the prompts."""
    low: Share
    high: Share


@dataclass(frozen=True)
class Point:
    """One measured point."""

    kind: ClassVar[str] = "point"
    task: Name
    length: Positive
    mode: Name
    budget: Number | None
    prompts: list[Prompt]
    density: Density
    density_by_head: list[list[Share]]
    """[layers][query heads], mean over the prompts; an empty row where a layer was not gated."""
    peak_memory_bytes: Count
    ttft_s: list[Seconds] = field(default_factory=list)
    """Seconds to the first token, one prompt a prefill, after warm-up; on held-out samples."""
    attention_s: list[Seconds] = field(default_factory=list)
    """Seconds of these prefills that were attention, summed over the layers."""
    answers: list[str] = field(default_factory=list)
    """The generated texts in the order of prompts; may be left out."""

    def fault(self) -> str | None:
        """What contradicts itself in it, if anything does."""
        if len({len(row) for row in self.density_by_head if row}) > 1:
            return "density_by_head has rows of several lengths; expected one length, or none"
        return None

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
    task: Name
    length: Positive
    mode: Name
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
    task: Name
    length: Positive
    mode: Name
    budget: Number | None
    layer: Count
    head: Count
    prompt: Whole
    """Its id."""
    q_blocks: Positive
    k_blocks: Positive
    rows: list[str]
    """By query block, kept bits in hexadecimal: the highest bit of the first digit is block 0."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Identifies the map in a file."""
        return self.task, self.length, self.mode, self.budget, self.layer, self.head, self.prompt

    def fault(self) -> str | None:
        """What contradicts itself in it, if anything does."""
        digits = -(-self.k_blocks // 4)
        if len(self.rows) != self.q_blocks:
            return f"rows has {len(self.rows)} entries; expected {self.q_blocks}, q_blocks"
        for number, row in enumerate(self.rows):
            if len(row) != digits or not _HEXADECIMAL.issuperset(row):
                return f"rows[{number}] is {shown(row)}; expected {digits} hexadecimal digits"
        return None

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

    id: Whole
    """The same prompt has the same id in every setting."""
    density: Share
    error: Change | None = None
    agreement: Share | None = None
    perplexity_change: Change | None = None


@dataclass(frozen=True)
class Ablation:
    """One setting of an ablation."""

    kind: ClassVar[str] = "ablation"
    name: Name
    """samples, domain, position or gate_block."""
    setting: Name
    budget: Positive
    density: Share
    density_predicted: Share | None
    error: Change | None
    """Mean relative L2 error of the attention output."""
    agreement: Share | None
    """Share of tokens whose most likely successor is that of dense attention."""
    perplexity_change: Change | None
    """Perplexity over that of dense attention, less 1."""
    n: Count
    """Prompts."""
    length: Positive | None = None
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
            raise FormatError(f"{path_text(self.path)}: a second header")


def _encode(record: Record) -> str:
    return json.dumps({"kind": record.kind, **dataclasses.asdict(record)}, allow_nan=False)


def _decode(line: str, where: str) -> Record:
    values = parse(line, where)
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FormatError(f"{where}: kind is {shown(kind)}; expected one of {', '.join(_KINDS)}")
    record: Record = build(_KINDS[kind], values, f"{where}: {kind}")
    fault = record.fault() if isinstance(record, (Point, Map)) else None
    if fault is not None:
        raise FormatError(f"{where}: {kind}.{fault}")
    return record


def _check_header(line: str, path: str) -> Header:
    where = f"{path_text(path)}:1"
    try:
        values = parse(line, where)
    except FormatError:
        values = {}
    if values.get("kind") != "header":
        raise FormatError(
            f"{where}: not a results file of `bsfa eval`; expected a first line of kind 'header'"
        )
    for name, expected in (("format", FORMAT), ("version", VERSION)):
        if values.get(name) != expected:
            raise FormatError(
                f"{where}: {name} is {shown(values.get(name))}; this bsfa reads {expected!r}"
            )
    header: Header = build(Header, values, f"{where}: header")
    return header


def read(path: str | os.PathLike[str]) -> Results:
    """A results file. Refuses another format or version; `torn` reports a last line cut short."""
    path = os.fspath(path)
    name = path_text(path)
    lines = read_bytes(path).decode("utf-8", "replace").split("\n")
    tail = lines.pop()  # empty if the last line was written whole
    if not lines:
        raise FormatError(
            f"{name}: "
            + ("its header was not written whole" if tail else "is empty")
            + "; expected a results file of `bsfa eval`"
        )
    results = Results(path, _check_header(lines[0], path))
    for number, line in enumerate(lines[1:], start=2):
        if line:
            results.add(_decode(line, f"{name}:{number}"))
    if tail:
        results.torn = f"{name}: the last line was not written whole and is left out"
    return results


class Writer:
    """The one writer of a results file, from its making to `release`, or to the end of the process.

    A second one, of whatever process, is refused with FileError at once; readers are not kept out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Takes the file, which need not be there yet."""
        self.path = os.fspath(path)
        self._lock = Lock(self.path)
        try:
            if os.path.exists(self.path):  # hours before the first record, not at it
                open(self.path, "r+b").close()
        except OSError as error:
            self.release()
            raise self._failed(error) from error

    def __enter__(self) -> Writer:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Lets others write."""
        self.release()

    def release(self) -> None:
        """Lets others write."""
        self._lock.release()

    def _failed(self, error: OSError) -> FileError:
        return FileError(f"{path_text(self.path)}: cannot be written: {said(error)}")

    def create(self, header: Header) -> None:
        """A new results file with its header; refuses to overwrite."""
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                _write(file, header)
        except OSError as error:
            raise self._failed(error) from error

    def append(self, record: Record) -> None:
        """Adds a record, on the disk when this returns. Removes the rest of a torn line before."""
        try:
            with open(self.path, "r+b") as raw:
                _cut_torn_line(raw)
            with open(self.path, "a", encoding="utf-8") as file:
                _write(file, record)
        except OSError as error:
            raise self._failed(error) from error

    def replace_header(self, header: Header) -> None:
        """The same file with another header: as before, or with it, whenever it is interrupted."""
        rest = read_bytes(self.path).partition(b"\n")[2]
        write_file(self.path, (_encode(header) + "\n").encode() + rest)


def create(path: str | os.PathLike[str], header: Header) -> None:
    """`Writer.create`, by a writer for this alone."""
    with Writer(path) as writer:
        writer.create(header)


def append(path: str | os.PathLike[str], record: Record) -> None:
    """`Writer.append`, by a writer for this alone."""
    with Writer(path) as writer:
        writer.append(record)


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
