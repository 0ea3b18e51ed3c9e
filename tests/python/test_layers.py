"""Who imports whom in the package, and what a wheel installs."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import bsfa

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python/bsfa"


def imports(path: Path) -> set[str]:
    """The modules that a file names in imports, wherever they stand in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_imports_the_command_line(path: Path) -> None:
    inside = path.is_relative_to(PACKAGE / "cli") or path == PACKAGE / "__main__.py"
    found = sorted(module for module in imports(path) if below(module, "bsfa.cli"))
    assert inside or not found, f"{path} imports {found}"


def test_evaluation_is_known_to_the_command_line_alone() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli") or path.is_relative_to(PACKAGE / "eval"):
            continue
        assert not [m for m in imports(path) if below(m, "bsfa.eval")], path


def test_results_are_read_without_torch() -> None:
    code = (
        "import sys, bsfa.eval.results, bsfa.cli; "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_of_the_package_starts_with_python() -> None:
    """The wheel holds the package and its metadata: no .pth file, no module beside it."""
    try:
        files = importlib.metadata.files("bsfa")
    except importlib.metadata.PackageNotFoundError:
        files = None
    assert files, "the tests run on an installed package"
    tops = {file.parts[0] for file in files if not file.parts[0].startswith("..")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bsfa"}
    assert not [file for file in files if file.suffix == ".pth"]
    assert Path(bsfa.__file__).parent.name == "bsfa"
    assert not list((ROOT / "python").rglob("*.pth"))
