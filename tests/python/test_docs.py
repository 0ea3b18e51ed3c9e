"""The pages: links, tables, figures, and what stands in several places."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "bench/results/README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "integrations").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
RESULTS = ROOT / "bench/results"
LOG = ROOT / "docs/kernel-log"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(text: str) -> list[str]:
    """The lines of a page, those of code blocks emptied."""
    lines, fenced = [], False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        lines.append("" if fence or fenced else line)
        fenced ^= fence
    return lines


def without_code(line: str) -> str:
    """A line with its code spans blanked."""
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", lambda m: " " * len(m[0]), line)


def links(text: str) -> Iterator[str]:
    """Targets of links and images, in Markdown and in HTML."""
    whole = "\n".join(without_code(line) for line in prose(text))
    yield from re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", whole)
    yield from re.findall(r"^\[[^\]]+\]:\s*(\S+)", whole, re.MULTILINE)
    yield from re.findall(r"<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"]+)\"", whole)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page, and what it names itself."""
    found: set[str] = set()
    text = page.read_text()
    for line in prose(text):
        heading = re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading is None:
            continue
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        base = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        anchor, count = base, 0
        while anchor in found:
            count += 1
            anchor = f"{base}-{count}"
        found.add(anchor)
    found.update(re.findall(r"<a\s+(?:name|id)=\"([^\"]+)\"", text))
    return found


def broken_links(page: Path) -> list[str]:
    wrong = []
    for target in links(page.read_text()):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # elsewhere: not looked up
        path, _, anchor = target.partition("#")
        there = page if not path else page.parent / path
        if path.startswith("/") or not there.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            wrong.append(f"{target}: no such heading")
    return wrong


def cells(row: str) -> int:
    """How many cells a row of a table has; as on GitHub, a bar in a code span separates too."""
    inner = row.strip().removeprefix("|")
    inner = re.sub(r"(?<!\\)\|$", "", inner)
    return len(re.split(r"(?<!\\)\|", inner))


def broken_tables(text: str) -> list[str]:
    wrong = []
    lines = prose(text)
    rule = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?$")
    at = 0
    while at < len(lines):
        if not lines[at].startswith("|"):
            at += 1
            continue
        begin = at
        while at < len(lines) and lines[at].startswith("|"):
            at += 1
        if begin > 0 and lines[begin - 1].strip():
            wrong.append(f"line {begin + 1}: a table directly behind text is text")
        if at - begin < 2 or not rule.match(lines[begin + 1].strip()):
            wrong.append(f"line {begin + 1}: a table without the rule below its head")
            continue
        for n in range(begin, at):
            if cells(lines[n]) != cells(lines[begin]):
                wrong.append(
                    f"line {n + 1}: {cells(lines[n])} cells, the head has {cells(lines[begin])}"
                )
        if at < len(lines) and lines[at].strip():
            wrong.append(f"line {at + 1}: text directly behind a table is a row of it")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables(page: Path) -> None:
    assert broken_tables(page.read_text()) == []


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A *heading*, with `code`\n\n"
        "[good](#a-heading-with-code) [bad](#a-heading) [gone](gone.md#x) `[code](not.md)`\n"
        '<img src="gone.png" alt=""> [far](https://example.org/x)\n\n```\n[fenced](not.md)\n```\n'
    )
    assert broken_links(page) == [
        "#a-heading: no such heading",
        "gone.md#x: no such file",
        "gone.png: no such file",
    ]
    assert broken_tables("| a | b |\n|---|---|\n| 1 | 2\\|3 |\n| `x` | y |\n") == []
    assert broken_tables("| a | b |\n|---|---|\n| 1 |\n") == ["line 3: 1 cells, the head has 2"]
    assert broken_tables("| a |\n| b |\n") == ["line 1: a table without the rule below its head"]
    assert broken_tables("text\n| a |\n|---|\n| 1 |\nmore\n") == [
        "line 2: a table directly behind text is text",
        "line 5: text directly behind a table is a row of it",
    ]


def test_the_log_is_whole() -> None:
    """An entry a file, from 1 on, each in the index."""
    entries = sorted(path.name for path in LOG.glob("[0-9]*.md"))
    assert [int(name.split("-")[0]) for name in entries] == list(range(1, len(entries) + 1))
    index = re.findall(
        r"^\| (\d+) \| \[[^\]]+\]\(([^)]+)\) \|", (LOG / "README.md").read_text(), re.M
    )
    assert index == [(str(int(name.split("-")[0])), name) for name in entries]


def test_every_results_file_is_described() -> None:
    described = re.findall(r"^\| `([^`]+)` \|", (RESULTS / "README.md").read_text(), re.MULTILINE)
    there = [str(path.relative_to(RESULTS)) for path in RESULTS.rglob("*.json*")]
    assert sorted(described) == sorted(there)


@pytest.mark.parametrize(("script", "figure"), [("kernel_schedule.py", "kernel-schedule.svg")])
def test_figures_are_those_of_their_scripts(script: str, figure: str) -> None:
    folder = ROOT / "docs/figures"
    drawn = subprocess.run(
        [sys.executable, folder / script], check=True, capture_output=True, text=True
    ).stdout
    assert drawn == (folder / figure).read_text()


def test_one_version_of_nvcc_is_asked_for() -> None:
    cmake = (ROOT / "src/cuda/CMakeLists.txt").read_text()
    checked = re.findall(r"CMAKE_CUDA_COMPILER_VERSION VERSION_LESS ([0-9.]+)", cmake)
    assert len(checked) == 1
    said = re.findall(r"(?:nvcc|need) ([0-9]+\.[0-9]+) or\b", cmake)
    for page in PAGES:
        said += re.findall(r"\bnvcc ([0-9]+\.[0-9]+)", page.read_text())
    assert len(said) >= 4
    assert set(said) == set(checked)


def test_presets_are_those_of_cmake() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    names = [p["name"] for p in presets["configurePresets"] if not p.get("hidden")]
    for kind in ("buildPresets", "testPresets"):
        assert [preset["name"] for preset in presets[kind]] == names
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    table = contributing.split("| preset | what |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `([a-z]+)` \|", table, re.MULTILINE) == names
    for page in PAGES:
        assert set(re.findall(r"--preset ([a-z]+)", page.read_text())) <= set(names), page


def test_the_site_builds(tmp_path: Path) -> None:
    """Strict: a page that no menu has, a link or a heading that is not there stops it."""
    pytest.importorskip("mkdocs", reason="needs mkdocs (extra docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/kernels.html").read_text()
    assert 'href="repository/bench/results/index.html"' in page  # beyond docs/, turned by the hook
    assert (tmp_path / "site/repository/bench/results/index.html").is_file()
