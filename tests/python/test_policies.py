"""The table of policies: everything that lists or draws modes is made from it."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import bsfa
from bsfa.policies import (
    ATTENTIONS,
    EXACT,
    METHOD,
    MODES,
    OPTIONS,
    POLICIES,
    STOCK,
    SWEPT,
    SWEPT_BY_DEFAULT,
)

TESTS = Path(__file__).parent

# A row that only masks, as docs/extending.md adds one; and all places that have to show it.
NEW_ROW = """
import sys
from bsfa import policies

row = policies.Policy(
    "narrow",
    "narrow",
    "half the budget",
    policies.Look("#123456", "#654321", "o", "-"),
    "budget",
    call=lambda budget, parameter: {"window_blocks": budget // 2},
)
source = open(policies.__file__).read()
here = source.index('POLICIES = {')
source = source[:here] + "_TABLE = (*_TABLE, ROW)\\n" + source[here:]
vars(policies)["ROW"] = row
exec(compile(source, policies.__file__, "exec"), vars(policies))

import torch
import bsfa
import bsfa.hf
from bsfa.cli import main
from bsfa.cli.run import COMPARE
from bsfa.eval import plots, results, sweep
from tiny import logits, tiny_model, tokens

model, ids = tiny_model("llama"), tokens(1, 400)
bsfa.enable(model, mode="sliding_window", budget=1)
expected = logits(model, ids)
bsfa.set_mode(model, "narrow", budget=2)
assert torch.equal(logits(model, ids), expected)
assert bsfa.stats(model).layers[0].attention == "narrow"
assert "narrow" in COMPARE and "narrow" in results.MODES and "narrow" in sweep.SWEPT
assert plots.MODE_NAMES["narrow"] == "narrow"
assert plots.LIGHT.modes["narrow"] == "#123456"
for verb in (["run", "--help"], ["eval", "sweep", "--help"]):
    try:
        main(verb)
    except SystemExit:
        pass
print("done")
"""


def test_a_new_row_is_everywhere() -> None:
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NEW_ROW)],
        capture_output=True,
        text=True,
        cwd=TESTS,
        check=False,
    )
    assert found.stdout.endswith("done\n"), found.stderr[-2000:]
    text = " ".join(found.stdout.split())
    assert "narrow: half the budget" in text  # run
    assert "narrow (half the budget)" in text  # sweep


def test_names_of_policies_stand_in_the_table_alone() -> None:
    """Except dense, which everything is compared with, and arguments of functions."""
    package = Path(bsfa.__file__).parent
    names = set(ATTENTIONS) - {"dense"}
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.name == "policies.py" or path.parent.name == "ops":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and node.value in names:
                found.append((str(path.relative_to(package)), node.value))
    arguments_of_layers = ["eval/ablation_measure.py", "hf/attention.py", "hf/compiled.py"]
    arguments = [(path, "sliding_window") for path in arguments_of_layers]
    arguments.append(("hf/prefill.py", "coverage"))
    assert set(found) <= set(arguments)


def test_the_table_is_whole() -> None:
    assert tuple(POLICIES) == MODES
    assert STOCK.name not in POLICIES
    assert EXACT == ("stock", "dense")
    assert set(ATTENTIONS) - set(SWEPT) == {"sparge"}
    assert SWEPT_BY_DEFAULT == ("dense", "threshold", "sliding_window")
    assert {o: [p.name for p in takers] for o, takers in OPTIONS.items()} == {
        "coverage": ["coverage"],
        "mass-c": ["mass"],
        "skip-lambda": ["skip_softmax", "skip_softmax_outwards"],
    }
    assert POLICIES[METHOD].needs_thresholds
    for ground in ("light", "dark"):
        colours = [getattr(policy.look, ground) for policy in ATTENTIONS.values()]
        assert len(set(colours)) == len(colours)
    marks = [policy.look.marker for policy in ATTENTIONS.values()]
    assert len(set(marks)) == len(marks)
    for policy in ATTENTIONS.values():
        assert policy.label
        assert policy.summary
        assert policy.has_budget + policy.has_parameter <= 1
        assert policy.has_parameter == bool(policy.option)


@pytest.mark.parametrize("budget", [None, -1])
def test_a_budget_that_is_missing_names_the_mode(budget: int | None) -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match="mode 'sliding_window' needs the number"):
        POLICIES["sliding_window"].check_budget(budget)
    for policy in POLICIES.values():
        if policy.name != "sliding_window":
            policy.check_budget(budget)
