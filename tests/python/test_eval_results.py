"""The results file of `bsfa eval`: what is written is read, torn lines, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bsfa
from bsfa.eval import results
from bsfa.eval.results import Ablation, Density, Failed, Map, Point, Prompt


def header() -> results.Header:
    return results.Header(
        created="2026-01-02T03:04:05",
        model=results.Model("tiny", 2, 4, 2, 16, 2048),
        versions={"bsfa": "0.1.0"},
        device=results.Device("cpu", "a CPU"),
        dtype="float32",
        threads=1,
        seed=7,
        thresholds=results.Thresholds("t.safetensors", "00", [4], ["text"], 512),
        tasks=["niah_single_1"],
        prompts_per_point=2,
    )


def point(budget: int | None = 4, score: float = 1.0) -> Point:
    return Point(
        "niah_single_1",
        512,
        "dense" if budget is None else "threshold",
        budget,
        [Prompt(3, score, 0.25), Prompt(4, 0.0, None, 0.5)],
        Density(0.4, 0.5, 0.3, 0.6),
        [[0.5, 0.25], []],
        1000,
        [0.1],
        [0.01],
    )


RECORDS = [
    point(),
    point(None),
    Failed("vt", 512, "dense", None, "out of memory"),
    Map("vt", 512, "threshold", 4, 0, 1, 3, 2, 5, Map.pack([[True] + 4 * [False], 5 * [True]])),
    Ablation("samples", "4", 8, 0.2, None, 0.01, 0.99, None, 10),
]


def written(path: Path) -> Path:
    results.create(path, header())
    for record in RECORDS:
        results.append(path, record)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    read = results.read(written(tmp_path / "r.jsonl"))
    assert read.header == header()
    assert read.torn is None
    found = [*read.points.values(), *read.failed.values(), *read.maps.values()]
    assert [*found, *read.ablations.values()] == RECORDS
    assert read.points["niah_single_1", 512, "threshold", 4].accuracy == 0.5
    first = json.loads((tmp_path / "r.jsonl").read_text().split("\n")[0])
    assert (first["kind"], first["format"], first["version"]) == ("header", "bsfa-eval", 1)
    assert first["label"] == "RULER-like"


def test_a_map_packs_its_bits() -> None:
    kept = [[True, False, False, False, False], [True, True, True, True, True]]
    assert Map.pack(kept) == ["80", "f8"]
    assert Map("t", 1, "dense", None, 0, 0, 0, 2, 5, ["80", "f8"]).kept() == kept


def test_a_later_record_replaces_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results.create(path, header())
    results.append(path, Failed("niah_single_1", 512, "threshold", 4, "killed"))
    results.append(path, point(score=0.0))
    results.append(path, point(score=1.0))
    read = results.read(path)
    assert read.failed == {}
    assert [p.accuracy for p in read.points.values()] == [0.5]


def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    whole = written(tmp_path / "r.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    path = tmp_path / "cut.jsonl"
    for cut in {*range(ends[0], len(whole), 97), *ends, *(end - 1 for end in ends[1:])}:
        path.write_bytes(whole[:cut])
        read = results.read(path)
        kept = sum(end <= cut for end in ends) - 1
        count = len(read.points) + len(read.failed) + len(read.maps) + len(read.ablations)
        assert count == kept
        assert (read.torn is None) == (cut in ends)
        results.append(path, RECORDS[-1])
        again = results.read(path)
        assert again.torn is None
        assert again.ablations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version is 2; this bsfa reads 1"),
        ({"format": "other"}, "format is 'other'; this bsfa reads 'bsfa-eval'"),
        ({"kind": "point"}, "first line of kind 'header'"),
        ({"threads": "one"}, 'header.threads is "one"; expected int'),
        ({"device": {"type": "cpu"}}, "header.device.name is missing"),
        ({"seed": True}, "header.seed is true; expected int"),
    ],
)
def test_another_header_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = written(tmp_path / "r.jsonl")
    lines = path.read_text().split("\n")
    lines[0] = json.dumps({**json.loads(lines[0]), **change})
    path.write_text("\n".join(lines))
    with pytest.raises(bsfa.FormatError, match=message):
        results.read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"kind": "pint"}', "kind is 'pint'; expected one of header, point"),
        ("[1]", "is of type list; expected an object"),
        ('{"kind": "failed", "task": 3}', "failed.task is 3; expected str"),
        ("{", "not JSON"),
    ],
)
def test_a_line_in_the_middle_that_is_wrong_is_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    path = written(tmp_path / "r.jsonl")
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(bsfa.FormatError, match=message):
        results.read(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(bsfa.FileError, match="cannot be read"):
        results.read(tmp_path / "none")
    (tmp_path / "empty").write_text("")
    with pytest.raises(bsfa.FormatError, match="is empty"):
        results.read(tmp_path / "empty")
    (tmp_path / "torn").write_text('{"kind": "hea')
    with pytest.raises(bsfa.FormatError, match="not written whole"):
        results.read(tmp_path / "torn")
    written(tmp_path / "r.jsonl")
    with pytest.raises(bsfa.FileError, match="cannot be written"):
        results.create(tmp_path / "r.jsonl", header())
