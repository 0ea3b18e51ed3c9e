"""Text from files, arguments and models in messages: quoted, bounded, the same in every place."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import bsfa
from bsfa import _core, errors, text
from bsfa.eval.provenance import categories_of
from bsfa.published import load_pt, save_pt
from tiny import table_for


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("plain", "'plain'"),
        (b"bytes \xff", "'bytes \\xff'"),
        ("\x1b[31m\x9b\u202e\n\t", "'\\x1b[31m\\x9b\\u202e\\n\\t'"),
        ("\udcff", "'\\xff'"),  # a byte of a file's name, as Python has it
        ("\ud800", "'\\xed\\xa0\\x80'"),  # half a character, as JSON may have it
        ("naïve 北京", "'naïve 北京'"),
        ("\0", "'\\x00'"),
    ],
)
def test_quote(foreign: str | bytes, shown: str) -> None:
    assert text.quote(foreign) == shown
    assert text.quote_path(foreign) == shown
    assert text.path_text(foreign) == shown[1:-1]


def test_everything_is_bounded() -> None:
    assert text.quote("x" * 10**6) == "'" + "x" * 61 + "...'"
    assert len(text.path_text("x" * 10**6)) == 1024
    assert len(text.printable("\x1b" * 10**6)) <= 4096
    for value in (
        "x" * 10**6,
        list(range(10**6)),
        10**5000,
        {"a": "\x1b" * 10**5},
        b"\xff" * 10**5,
    ):
        shown = text.shown(value)
        assert len(shown) <= 100
        assert text.printable(shown) == shown
    assert len(text.said(ValueError("a\n" * 10**6))) <= 1000
    with pytest.raises(TypeError, match="expected str or bytes, not int"):
        _core.quote(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [c for c in vars(errors).values() if isinstance(c, type)])
def test_messages_of_every_error_are_fit_for_a_terminal(kind: type) -> None:
    if not issubclass(kind, errors.Error):
        return
    error = kind("line\nwith \x1b[31m and \ud800" + "x" * 10**6)
    assert str(error).startswith("line\\nwith \\x1b[31m and \\xed\\xa0\\x80xxx")
    assert len(str(error)) <= 4096


def test_names_of_files_as_the_system_has_them(tmp_path: Path) -> None:
    """Names that are not UTF-8 are names like others; a NUL, at which C ends them, is refused."""
    table = table_for(None, torch.zeros(1, 2, 4, 4), [4])
    name = bytes(tmp_path) + b"/\xff\x1b.safetensors"
    table.save(name)
    assert bsfa.ThresholdTable.load(name.decode("utf-8", "surrogateescape")).budgets == [4]
    assert bsfa.ThresholdTable.load(Path(name.decode("utf-8", "surrogateescape"))).budgets == [4]
    (tmp_path / "cut").write_bytes(Path(name.decode("utf-8", "surrogateescape")).read_bytes())
    for call in (
        bsfa.ThresholdTable.load,
        bsfa.Calibration.load,
        table.save,
        lambda path: _core.write_file(path, b""),
        lambda path: _core.read_samples([path]),
        lambda path: bsfa.merge_files([path], tmp_path / "out"),
    ):
        with pytest.raises(bsfa.InvalidArgumentError, match=r"with a NUL at byte \d+; accepted"):
            call(f"{tmp_path}/cut\0.safetensors")


def damaged(content: bytes, generator: random.Random) -> bytes:
    """A file with some bytes changed, most of them in its header, or cut short."""
    changed = bytearray(content)
    header = min(len(changed), 8 + int.from_bytes(content[:8], "little"))
    for _ in range(generator.choice((1, 1, 2, 5, 40))):
        last = header if generator.random() < 0.9 else len(changed)
        changed[generator.randrange(last)] = generator.randrange(256)
    if generator.random() < 0.1:
        del changed[generator.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.parametrize("kind", ["thresholds", "sums"])
def test_damaged_files_are_refused_in_words(tmp_path: Path, kind: str) -> None:
    """Whatever is in the file, the message is one that Python can take and a terminal can show."""
    sound = tmp_path / "sound"
    calibration = bsfa.Calibration(
        budgets=[4], softmax_scale=0.25, model="a model", num_layers=1, num_heads_q=2,
        producer="a test",
    )  # fmt: skip
    calibration.begin_sample("a sample", 256)
    calibration.add(0, 0, 256, torch.zeros(1, 2, 2))
    calibration.end_sample()
    if kind == "sums":
        calibration.save(sound)
    else:
        calibration.finish().save(sound)
    content, path = sound.read_bytes(), tmp_path / "damaged"
    load = bsfa.Calibration.load if kind == "sums" else bsfa.ThresholdTable.load
    refused = 0
    for seed in range(3000):
        path.write_bytes(damaged(content, random.Random(seed)))
        for read in (load, categories_of):
            try:
                read(path)
            except bsfa.Error as error:
                message = str(error)
                assert str(path) in message, seed
                assert text.printable(message) == message, seed
                assert len(message) <= 4096, seed
                refused += 1
    assert refused > 3000


def test_damaged_published_files_are_refused_in_words(tmp_path: Path) -> None:
    sound, path = tmp_path / "sound.pt", tmp_path / "damaged.pt"
    save_pt(table_for(None, torch.zeros(1, 2, 4, 4), [4]), sound)
    content, refused = sound.read_bytes(), 0
    for seed in range(150):
        generator = random.Random(seed)
        changed = bytearray(content)
        for _ in range(generator.choice((1, 3, 30))):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(changed)
        try:
            load_pt(path, softmax_scale=0.25, model="m")
        except bsfa.Error as error:
            message = str(error)
            assert text.printable(message) == message, seed
            assert len(message) <= 1000, seed
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000 + "]" * 100_000,
        "[" + "9" * 5000 + "]",
        '["\\ud800"]',
        '[{"input_text": NaN}]',
        '[{"input_text": "\\u0000"}]',
        '["' + "\x1b" + '"]',
        '[{"' + "k" * 10**6 + '": 1}]',
        '{"a": ' * 1000 + "1" + "}" * 1000,
    ],
    ids=["deep", "long", "half", "nan", "nul", "escape", "key", "objects"],
)
def test_odd_calibration_texts_are_refused_in_words(tmp_path: Path, content: str) -> None:
    for name in ("x.json", "x.jsonl"):
        path = tmp_path / name
        path.write_text(content + "\n")
        with pytest.raises(bsfa.Error) as refused:
            _core.read_samples([path])
        message = str(refused.value)
        assert str(path) in message
        assert text.printable(message) == message
        assert len(message) < 2000


def test_require_text() -> None:
    assert text.require_text("--question", "naïve") == "naïve"
    with pytest.raises(bsfa.InvalidArgumentError, match="--question holds a NUL at character 1"):
        text.require_text("--question", "a\0b")
    with pytest.raises(bsfa.InvalidArgumentError, match=r"--question is not UTF-8: '\\xff'"):
        text.require_text("--question", "\udcff")


def test_no_message_quotes_foreign_text_by_itself() -> None:
    """A brace between plain quotes in a message is text that nothing looked at."""
    source = Path(__file__).parents[2] / "python/bsfa"
    for path in sorted(source.rglob("*.py")):
        if path.is_relative_to(source / "hf") or path.is_relative_to(source / "ops"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert "'{" not in line or ".join" in line, f"{path}:{number}: {line}"
