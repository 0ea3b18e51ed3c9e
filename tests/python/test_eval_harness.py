"""The model type of the lm-evaluation-harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bsfa
from bsfa.cli import main
from eval_setup import model, tokenizer
from tiny import table_for

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a threshold file that keeps nothing but the diagonal."""
    path = tmp_path_factory.mktemp("harness")
    model().save_pretrained(path / "model")
    tokenizer().save_pretrained(path / "model")
    table_for(model(), torch.full((1, 2, 4, 16), torch.inf), [8]).save(str(path / "t.safetensors"))
    return path


def make(folder: Path, **arguments: Any) -> Any:
    from bsfa.eval.harness import BsfaLM

    return BsfaLM(pretrained=str(folder / "model"), device="cpu", **arguments)


def loss(lm: Any, text: str) -> float:
    """Log-likelihood of a text, as tasks of the harness ask for it."""
    from lm_eval.api.instance import Instance

    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    return lm.loglikelihood_rolling([request], disable_tqdm=True)[0]


def test_modes(folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    text = " ".join(f"word{i * i % 97}" for i in range(150))
    theirs = loss(HFLM(pretrained=str(folder / "model"), device="cpu"), text)
    assert loss(make(folder, mode="stock"), text) == theirs
    assert loss(make(folder), text) == pytest.approx(theirs, rel=1e-5)
    sparse = make(folder, thresholds=str(folder / "t.safetensors"), budget=8)
    assert loss(sparse, text) != pytest.approx(theirs, rel=1e-5)
    info = sparse.get_model_info()
    assert (info["bsfa_mode"], info["bsfa_budget"], info["bsfa_fallbacks"]) == ("threshold", 8, {})
    assert 0 < info["bsfa_last_density"] < 1
    assert "bsfa_mode" not in make(folder, mode="stock").get_model_info()
    mass = make(folder, mode="mass", parameter="0.2").get_model_info()
    assert (mass["bsfa_mode"], mass["bsfa_parameter"]) == ("mass", 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": "many"}, "budget is 'many'; accepted"),
        ({"mode": "sparse"}, "mode is 'sparse'; accepted: dense, threshold"),
        ({"mode": "threshold"}, "needs thresholds"),
        ({"mode": "mass", "parameter": "much"}, "parameter is 'much'; accepted: a number"),
        ({"mode": "mass", "parameter": "-1"}, "parameter is -1.0; mode 'mass' takes a finite c"),
        ({"thresholds": "T", "budget": 9}, r"budget.*9"),
    ],
)
def test_refusals(folder: Path, arguments: dict[str, Any], message: str) -> None:
    if "thresholds" in arguments:
        arguments = {**arguments, "thresholds": str(folder / "t.safetensors")}
    with pytest.raises(bsfa.Error, match=message):
        make(folder, **arguments)


TASK = """
task: needle
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 4, until: ["."]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


PROGRAM = """
import sys
import bsfa.eval.harness
from lm_eval.__main__ import cli_evaluate
sys.argv = ["lm_eval", *sys.argv[1:]]
cli_evaluate()
"""


@pytest.mark.parametrize(
    "way", [["-m", "bsfa", "eval", "harness"], ["-c", PROGRAM]], ids=["command", "import"]
)
def test_both_ways_know_the_model_type(folder: Path, tmp_path: Path, way: list[str]) -> None:
    """A task with local data, by the command of bsfa and by the import that programs use."""
    rows = [{"text": f"word {i} " * 100, "answer": str(i)} for i in range(2)]
    data = tmp_path / "data.json"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "needle.yaml").write_text(TASK.format(data=data))
    arguments = f"pretrained={folder / 'model'},thresholds={folder / 't.safetensors'},budget=8"
    command = [sys.executable, *way, "run", "--model", "bsfa", "--device", "cpu"]
    command += ["--model_args", arguments, "--tasks", "needle", "--include_path", str(tmp_path)]
    command += ["--output_path", str(tmp_path / "out")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=offline)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(written.read_text())
    assert found["config"]["model"] == "bsfa"
    assert (found["config"]["bsfa_mode"], found["config"]["bsfa_budget"]) == ("threshold", 8)
    assert 0 < found["config"]["bsfa_last_density"] < 1
    assert found["results"]["needle"]["exact_match,none"] == 0  # random weights


def test_importing_bsfa_leaves_the_harness_alone() -> None:
    code = "import sys, bsfa, bsfa.cli; assert 'lm_eval' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_hub_that_is_not_reached_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.__main__

    seen = []

    def fail() -> None:
        seen.append(sys.argv[1:])
        try:
            raise ConnectionError("no route to the hub")
        except ConnectionError as error:
            raise ValueError("cannot load the data set") from error

    before = list(sys.argv)
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", fail)
    assert main(["eval", "harness", "--model", "bsfa", "--tasks", "qasper"]) == 1
    message = capsys.readouterr().err
    assert "could not be fetched" in message
    assert "no route to the hub" in message
    assert "bsfa eval sweep" in message
    assert seen == [["--model", "bsfa", "--tasks", "qasper"]]
    assert sys.argv == before
    assert main(["eval", "harness"]) == 2
    assert "--model bsfa" in capsys.readouterr().err
