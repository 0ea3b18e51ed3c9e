"""One writer of a results file at a time, whatever its end; a second one is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bsfa
from bsfa.eval import results
from bsfa.eval.results import Failed, Writer
from bsfa.files import Lock
from synthetic_results import header as synthetic_header


def header() -> results.Header:
    return synthetic_header(["vt"], [512], [8], ["dense"])


HOLD = """
import sys, time
from bsfa.files import Lock
lock = Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""

APPEND = """
import sys
import bsfa
from bsfa.eval import results
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    record = results.Failed(name, number + 1, "dense", None, "x" * 2000)
    while True:
        try:
            with results.Writer(path) as writer:
                writer.append(record)
                if number % 10 == 9:
                    writer.replace_header(results.read(path).header)
            break
        except bsfa.FileError as error:
            assert "is being written by" in str(error), error
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    results.create(tmp_path / "r.jsonl", header())
    return tmp_path / "r.jsonl"


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes the file."""
    process = run(HOLD, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told(path: Path, holder: subprocess.Popen[str]) -> None:
    before = path.read_bytes()
    for write in (
        lambda: Writer(path),
        lambda: results.append(path, Failed("vt", 1, "dense", None, "")),
    ):
        with pytest.raises(bsfa.FileError, match="is being written by process") as told:
            write()
        assert str(told.value).startswith(str(path))
        assert f"process {holder.pid} on " in str(told.value)
        assert "write to another file" in str(told.value)
    assert path.read_bytes() == before
    assert results.read(path).header == header()  # readers are not kept out


def test_a_killed_process_holds_nothing(path: Path, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert Path(f"{path}.lock").exists()  # left behind, and no obstacle
    with Writer(path) as writer:
        writer.append(Failed("vt", 1, "dense", None, ""))
    assert not Path(f"{path}.lock").exists()
    assert len(results.read(path).failed) == 1


def test_links_lead_to_the_same_lock(
    path: Path, holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("r.jsonl")
    with pytest.raises(bsfa.FileError, match="is being written"):
        Writer(tmp_path / "link")


def test_two_writers_in_one_process(path: Path) -> None:
    with Writer(path), pytest.raises(bsfa.FileError, match=f"process {os.getpid()} on"):
        Writer(path)
    with Writer(path):
        pass


def test_a_new_header_leaves_the_lock_where_it_was(path: Path) -> None:
    with Writer(path) as writer:
        for _ in range(3):  # each puts another file in the place of the one before
            writer.replace_header(header())
            with pytest.raises(bsfa.FileError, match="is being written"):
                Writer(path)


def test_the_rest_of_a_file_stays_as_it_was_under_a_new_header(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\xff\xfe not text\n")
    with Writer(path) as writer:
        writer.replace_header(header())
    assert path.read_bytes().endswith(b"}\n\xff\xfe not text\n")


def test_no_record_is_lost_between_processes(path: Path) -> None:
    """Appends and header rewrites of several processes, one of which is killed at times."""
    count, names = 150, ("a", "b", "c")
    writers = [run(APPEND, path, name, count) for name in names]
    done = threading.Event()

    def kill_some() -> None:
        while not done.is_set():
            victim = run(APPEND, path, "victim", 10**6)
            time.sleep(0.2)
            victim.kill()
            victim.wait()

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        assert [writer.wait(timeout=240) for writer in writers] == [0] * len(names)
    finally:
        done.set()
        killer.join()
    results.append(path, Failed("last", 1, "dense", None, ""))  # removes a torn line
    found = {key[:2] for key in results.read(path).failed}
    assert found >= {(name, number + 1) for name in names for number in range(count)}


def test_names_as_long_as_can_be(tmp_path: Path) -> None:
    with Lock(tmp_path / ("n" * 255)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(bsfa.FileError, match=r"cannot be opened: No such file"):
        Lock(tmp_path / "none" / "r.jsonl")


def test_a_file_that_cannot_be_added_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(bsfa.FileError, match="folder: cannot be written: Is a directory"):
        Writer(tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]  # no lock is left
    if os.geteuid() != 0:
        results.create(tmp_path / "r.jsonl", header())
        (tmp_path / "r.jsonl").chmod(0o400)
        with pytest.raises(bsfa.FileError, match="Permission denied"):
            Writer(tmp_path / "r.jsonl")
