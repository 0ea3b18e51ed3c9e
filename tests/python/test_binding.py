"""The binding itself: tensors without torch, plans, threshold files, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import bsfa
from reference import gated_attention, middling_thresholds


def table(**changes: object) -> bsfa.ThresholdTable:
    arguments: dict = {
        "values": np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2),
        "budgets": [4, 8],
        "softmax_scale": 0.25,
        "max_seqlen": 256,
        "model": "a model",
        "num_samples": 3,
        "producer": "the tests",
    }
    arguments.update(changes)
    return bsfa.ThresholdTable(**arguments)


def test_imports_without_torch_or_transformers() -> None:
    code = (
        "import sys, bsfa\n"
        "bsfa.backends(), bsfa.predicted_density(8, 4096)\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numpy_in_and_out(backend: str) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 150, 4, 16), dtype=np.float32)
    k = rng.standard_normal((1, 150, 2, 16), dtype=np.float32)
    out = np.full_like(q, np.nan)
    bsfa.attention_forward(q, k, k, out, causal=True, backend=backend)
    expected = gated_attention(*map(torch.from_numpy, (q, k, k)), causal=True)[0]
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_every_statistic(backend: str) -> None:
    q, k, v = torch.randn(2, 300, 4, 16), torch.randn(2, 300, 2, 16), torch.randn(2, 300, 2, 16)
    dense = gated_attention(q, k, v, causal=True)
    thresholds = middling_thresholds(dense[4])
    out = torch.full_like(q, torch.nan)
    plan = bsfa.plan_attention(q, k, v, out, causal=True, backend=backend)
    assert plan.ok
    assert plan.error is None
    assert plan.backend == backend
    assert (plan.q_blocks, plan.kv_blocks) == (3, 5)
    lse = torch.full((2, 4, 300), torch.nan)
    kept, visible = torch.full((2, 4), -1), torch.full((2, 4), -1)
    mask = torch.full((2, 4, 3, 5), 9, dtype=torch.uint8)
    maxima = torch.full((2, 4, 3, 5), torch.nan)
    bsfa.attention_forward(
        q,
        k,
        v,
        out,
        causal=True,
        thresholds=thresholds,
        backend=backend,
        lse=lse,
        kept_blocks=kept,
        visible_blocks=visible,
        kept_mask=mask,
        block_max=maxima,
        num_threads=2,
    )
    expected = gated_attention(q, k, v, causal=True, thresholds=thresholds)
    torch.testing.assert_close(out.double(), expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maxima.double(), expected[4], atol=1e-5, rtol=1e-5)
    assert torch.equal(kept, expected[2])
    assert torch.equal(visible, expected[3])
    assert torch.equal(mask.sum(dim=(2, 3)).long(), kept)
    assert 0 < kept.sum() < visible.sum()


def test_padding_and_offsets_by_sequence(backend: str) -> None:
    q, k = torch.randn(2, 70, 2, 8), torch.randn(2, 200, 2, 8)
    left = torch.tensor([0, 30], dtype=torch.int32)
    out = torch.full_like(q, torch.nan)
    bsfa.attention_forward(q, k, k, out, causal=True, leftpad_k=left, backend=backend)
    for b, pad in enumerate(left.tolist()):
        expected = gated_attention(
            q[b : b + 1], k[b : b + 1, pad:], k[b : b + 1, pad:], causal=True, q_offset=130 - pad
        )[0]
        torch.testing.assert_close(out[b : b + 1].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_workspace_of_the_caller_of_any_alignment(backend: str) -> None:
    q = torch.randn(1, 200, 2, 16)
    plain, out = torch.empty_like(q), torch.empty_like(q)
    bsfa.attention_forward(q, q, q, plain, backend=backend)
    plan = bsfa.plan_attention(q, q, q, out, backend=backend)
    room = torch.empty(plan.workspace_bytes + 257, dtype=torch.uint8)[1:]
    bsfa.attention_forward(q, q, q, out, backend=backend, workspace=room)
    assert torch.equal(out, plain)


def test_threads_of_python_may_call_at_once(backend: str) -> None:
    q = torch.randn(1, 200, 2, 16)
    expected = torch.empty_like(q)
    bsfa.attention_forward(q, q, q, expected, backend=backend, num_threads=2)
    outs = [torch.empty_like(q) for _ in range(4)]

    def call(i: int) -> None:
        bsfa.attention_forward(q, q, q, outs[i], backend=backend, num_threads=1 + i % 2)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outs:
        assert torch.equal(out, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_call() -> None:
    # A separate process, since torch's own threads do not survive a fork.
    code = (
        "import os, numpy as np, bsfa\n"
        "q = np.ones((1, 64, 1, 8), np.float32); out = np.zeros_like(q)\n"
        f"call = lambda: bsfa.attention_forward(q, q, q, out, backend={bsfa.backends()[0].name!r},"
        " num_threads=2)\n"
        "call(); out[:] = 0\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    call(); os._exit(0 if (out == 1).all() else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, "q is of type list"),
        ({"q": np.zeros((2, 2))}, bsfa.InvalidArgumentError, "q has dtype float64"),
        ({"q": np.zeros((2, 2), np.float32)}, bsfa.InvalidArgumentError, "q has 2 axes"),
        ({"softmax_scale": -1.0}, bsfa.InvalidArgumentError, "softmax_scale is -1"),
        ({"compute_type": "int8"}, bsfa.InvalidArgumentError, "compute_type is 'int8'"),
        ({"backend": "quantum"}, bsfa.InvalidArgumentError, "backend is 'quantum'"),
        ({"block": (32, 64)}, bsfa.InvalidArgumentError, "block is 32x64"),
        ({"window_blocks": -1}, bsfa.InvalidArgumentError, "window_blocks is -1"),
        (
            {"thresholds": np.zeros((3, 1), np.float32)},
            bsfa.InvalidArgumentError,
            "3 heads; q has 2",
        ),
        ({"thresholds": np.zeros((2, 1))}, bsfa.InvalidArgumentError, "thresholds has dtype"),
        (
            {"thresholds": np.zeros((5, 2, 1), np.float32)},
            bsfa.InvalidArgumentError,
            "5 sequences; the call has 1",
        ),
        (
            {"thresholds": np.zeros((2, 1), np.float32), "thresholds_block": (64, 64)},
            bsfa.InvalidArgumentError,
            "64x64",
        ),
        (
            {"thresholds": np.zeros((2, 1), np.float32), "window_blocks": 1},
            bsfa.InvalidArgumentError,
            "both given",
        ),
        (
            {"window_blocks": 1, "mass_c": 0.1},
            bsfa.InvalidArgumentError,
            "window_blocks and mass_c were both given",
        ),
        ({"mass_c": 0.0}, bsfa.InvalidArgumentError, "mass_c is 0"),
        ({"mass_c": float("inf")}, bsfa.InvalidArgumentError, "mass_c is inf"),
        ({"skip_lambda": 2.0}, bsfa.InvalidArgumentError, "skip_lambda is 2"),
        (
            {"skip_lambda": 0.5, "skip_order": "inwards"},
            bsfa.InvalidArgumentError,
            "skip_order is 'inwards'; accepted: ascending, outwards",
        ),
        ({"skip_order": "outwards"}, bsfa.InvalidArgumentError, "without skip_lambda"),
        ({"cu_seqlens_q": np.zeros(2, np.int32)}, bsfa.InvalidArgumentError, "cu_seqlens_k"),
        ({"max_seqlen_q": 3}, bsfa.InvalidArgumentError, "cu_seqlens_q is missing"),
        ({"q_offsets": np.zeros(3, np.int32)}, bsfa.InvalidArgumentError, "q_offsets has 3"),
        ({"lse": np.zeros((1, 2, 9), np.float32)}, bsfa.InvalidArgumentError, "lse has shape"),
        ({"sinks": np.zeros(1, np.float32)}, bsfa.InvalidArgumentError, "sinks has 1"),
        ({"num_threads": 0}, bsfa.InvalidArgumentError, "num_threads is 0"),
        ({"workspace": np.zeros(1, np.int8)}, bsfa.InvalidArgumentError, "workspace has dtype"),
    ],
)
def test_refusals_name_the_argument(changes: dict, error: type, message: str) -> None:
    arguments: dict = {"backend": "reference", "causal": True}
    for name in "qkv":
        arguments[name] = np.ones((1, 10, 2, 8), np.float32)
    arguments["out"] = np.full((1, 10, 2, 8), 7, np.float32)
    arguments.update(changes)
    with pytest.raises(error, match=message):
        bsfa.attention_forward(**arguments)
    assert (arguments["out"] == 7).all()


def test_a_read_only_output_is_refused() -> None:
    q = np.ones((1, 10, 2, 8), np.float32)
    out = np.ones_like(q)
    out.flags.writeable = False
    with pytest.raises(TypeError, match=r"out .* writable"):
        bsfa.attention_forward(q, q, q, out, backend="reference")


def test_what_no_backend_serves_is_in_the_plan() -> None:
    q = np.ones((1, 10, 2, 8), np.float32)
    k = np.ones((3, 64, 2, 8), np.float32)
    paged = {
        "page_table": np.array([[2]], np.int32),
        "page_size": 64,
        "seqused_k": np.array([50], np.int32),
        "max_seqlen_k": 64,
        "backend": "reference",
    }
    plan = bsfa.plan_attention(q, k, k, q, **paged)
    assert not plan.ok
    assert "page_table was given" in plan.error
    with pytest.raises(bsfa.UnsupportedError, match="page_table was given"):
        bsfa.attention_forward(q, k, k, q.copy(), **paged)
    paged["page_table"][0, 0] = 3
    with pytest.raises(bsfa.InvalidArgumentError, match=r"page_table\[0, 0\] is 3; k has 3 pages"):
        bsfa.attention_forward(q, k, k, q.copy(), **paged)


def test_threshold_table_round_trip(tmp_path: Path) -> None:
    written = table(recommended_budget=8)
    path = str(tmp_path / "t.safetensors")
    written.save(path)
    read = bsfa.ThresholdTable.load(path)
    np.testing.assert_array_equal(read.values(), np.arange(48).reshape(2, 3, 4, 2))
    np.testing.assert_array_equal(read.thresholds(8), np.arange(24, 48).reshape(3, 4, 2))
    assert read.budgets == [4, 8]
    assert read.block == (128, 64)
    assert (read.num_layers, read.num_heads_q, read.num_q_blocks) == (3, 4, 2)
    assert (read.softmax_scale, read.max_seqlen, read.num_samples) == (0.25, 256, 3)
    assert (read.model, read.producer, read.recommended_budget) == ("a model", "the tests", 8)
    read.recommended_budget = None
    assert read.recommended_budget is None


def test_other_libraries_read_the_file(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = str(tmp_path / "t.safetensors")
    table().save(path)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata()["format"] == "bsfa-thresholds"
        np.testing.assert_array_equal(
            file.get_tensor("thresholds"), np.arange(48).reshape(2, 3, 4, 2)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": [4]}, "budgets"),
        ({"budgets": [8, 4]}, "budgets"),
        ({"recommended_budget": 5}, "recommended_budget"),
        ({"values": np.full((2, 3, 4, 2), np.nan, np.float32)}, "NaN|nan"),
        ({"values": np.zeros((2, 3, 4, 2))}, "values has dtype"),
        ({"softmax_scale": 0.0}, "softmax_scale"),
    ],
)
def test_bad_tables_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        table(**changes)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(bsfa.FileError, match=r"t\.safetensors"):
        bsfa.ThresholdTable.load(str(path))
    table().save(str(path))
    whole = path.read_bytes()
    for length in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(bsfa.FormatError, match=r"t\.safetensors"):
            bsfa.ThresholdTable.load(str(path))


def test_a_table_of_another_model_is_refused() -> None:
    mine = table()
    mine.check_model("mine", 3, 4, 0.25)
    for layers, heads, scale in ((4, 4, 0.25), (3, 8, 0.25), (3, 4, 0.5)):
        with pytest.raises(bsfa.Error, match="mine"):
            mine.check_model("mine", layers, heads, scale)
    with pytest.raises(bsfa.InvalidArgumentError, match="4, 8"):
        mine.thresholds(5)


def test_calibration_selects_merges_and_resumes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def sample() -> np.ndarray:
        """Block maxima of 512 tokens: 4 query blocks, 8 key blocks, causal."""
        maxima = rng.standard_normal((2, 4, 8)).astype(np.float32)
        for i in range(4):
            maxima[:, i, 2 * i + 2 :] = -np.inf
        return maxima

    def fresh() -> bsfa.Calibration:
        return bsfa.Calibration(
            budgets=[1, 2], softmax_scale=0.5, model="m", num_layers=1, num_heads_q=2
        )

    def feed(calibration: bsfa.Calibration, maxima: np.ndarray) -> np.ndarray:
        selected = np.full((2, 2, 4), np.nan, np.float32)
        bsfa.select_thresholds(maxima, selected, budgets=[1, 2])
        calibration.begin_sample("s", 512)
        calibration.add(0, 0, 512, selected)
        calibration.end_sample()
        return selected

    samples = [sample() for _ in range(3)]
    together = fresh()
    selected = [feed(together, s) for s in samples]
    for number, maxima in zip(selected, samples, strict=True):
        row = np.sort(maxima[0, 3, :6])[::-1]
        np.testing.assert_allclose(number[:, 0, 3], [row[:2].mean(), row[1:3].mean()], rtol=1e-6)
        assert np.isneginf(number[:, :, 0]).all()

    first, second = fresh(), fresh()
    feed(first, samples[0])
    path = str(tmp_path / "partial")
    first.save(path)
    resumed = bsfa.Calibration.load(path)
    assert (resumed.num_samples, resumed.max_seqlen) == (1, 512)
    feed(second, samples[1])
    feed(second, samples[2])
    resumed.merge(second)
    assert resumed.num_samples == together.num_samples == 3
    np.testing.assert_array_equal(resumed.finish().values(), together.finish().values())


def test_predicted_density() -> None:
    # 512 tokens: query block i sees 2 blocks on its diagonal and 2 i before them.
    assert bsfa.predicted_density(1, 512) == pytest.approx((8 + 3) / (8 + 12))
    assert bsfa.predicted_density(6, 512) == 1


def call(**changes: object) -> None:
    q = np.zeros((1, 4, 1, 16), np.float32)
    bsfa.attention_forward(q, q, q, np.empty_like(q), **{"causal": True, **changes})


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_threads", 10**6, "num_threads is 1000000; accepted: 1 to 4096"),
        ("num_threads", 0, "num_threads is 0; accepted: 1 to 4096"),
        ("num_threads", 2**32 + 1, "num_threads is 4294967297; accepted: 1 to 4096"),
        ("num_threads", 2**63, "num_threads is 9223372036854775808; accepted: whole numbers of 64"),
        ("q_offset", 10**30, "q_offset is 10{30}; accepted: whole numbers of 64 bits"),
        ("kv_offset", -(2**63) - 1, "kv_offset is -9223372036854775809; accepted: whole"),
        ("window", 2**64, "window is 18446744073709551616; accepted: whole"),
        ("window_blocks", 2**63, "window_blocks is 9223372036854775808; accepted: whole"),
        ("page_size", 2**63, "page_size is 9223372036854775808; accepted: whole"),
    ],
)
def test_numbers_that_do_not_fit_are_named(argument: str, value: int, message: str) -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        call(**{argument: value})


def test_numbers_that_python_does_not_write_out() -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match="q_offset is a number of thousands of dig"):
        call(q_offset=10**5000)


def test_numbers_of_numpy_are_numbers() -> None:
    call(num_threads=np.int64(1), q_offset=np.int32(0))
    for wrong in (1.0, "1", [1]):
        with pytest.raises(TypeError):
            call(num_threads=wrong)


def test_budgets_that_do_not_fit_are_named() -> None:
    with pytest.raises(bsfa.InvalidArgumentError, match="budget is 9223372036854775808; accepted"):
        bsfa.predicted_density(2**63, 4096)
    with pytest.raises(bsfa.InvalidArgumentError, match="seqlen is 9223372036854775808; accepted"):
        bsfa.predicted_density(4, 2**63)
    with pytest.raises(bsfa.InvalidArgumentError, match="budgets is 9223372036854775808; accepted"):
        table(budgets=[4, 2**63])
    with pytest.raises(bsfa.InvalidArgumentError, match="budget is 9223372036854775808; accepted"):
        table().thresholds(2**63)
    with pytest.raises(bsfa.InvalidArgumentError, match="recommended_budget is 922337203685477"):
        table().recommended_budget = 2**63
    maxima, out = np.zeros((1, 2, 4), np.float32), np.zeros((1, 1, 2), np.float32)
    with pytest.raises(bsfa.InvalidArgumentError, match="budgets is 9223372036854775808; accepted"):
        bsfa.select_thresholds(maxima, out, budgets=[2**63])
    with pytest.raises(bsfa.InvalidArgumentError, match="num_threads is 1000000; accepted: 1 to"):
        bsfa.select_thresholds(maxima, out, budgets=[1], num_threads=10**6)


@pytest.mark.parametrize("argument", ["q", "k", "v", "out"])
def test_the_other_byte_order_is_named(argument: str) -> None:
    arrays = {name: np.zeros((1, 4, 1, 16), np.float32) for name in ("q", "k", "v", "out")}
    other = ">" if sys.byteorder == "little" else "<"
    arrays[argument] = arrays[argument].astype(f"{other}f4")
    message = f"{argument} has elements of the other byte order than this machine's; accepted: nat"
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        bsfa.attention_forward(**arrays)
    with pytest.raises(bsfa.InvalidArgumentError, match="values has elements of the other byte"):
        table(values=np.zeros((2, 3, 4, 2), f"{other}f4"))
    view = memoryview(arrays[argument])  # without numpy's dtype
    with pytest.raises(bsfa.InvalidArgumentError, match=message):
        bsfa.attention_forward(**{**arrays, argument: view})
