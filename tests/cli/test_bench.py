"""`neuscale bench` prints the median of its rounds; a ratio above 1 means that NeuScale is faster."""

import statistics
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import Said
from neuscale.benchmark import ops, step
from neuscale.benchmark.ops import Measured, table_lines
from neuscale.benchmark.step import Case
from neuscale.cli import run

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A fake clock that only moves when a test or a fake function advances it."""
    now = [100.0]
    for module in (ops, step):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def takes(clock: list[float], *seconds: float) -> Callable[[], None]:
    """A function whose calls advance the clock by each of `seconds` in turn, then always by the last one."""
    left = list(seconds)

    def work() -> None:
        clock[0] += left.pop(0) if len(left) > 1 else left[0]

    return work


def test_a_side_has_the_median_of_its_rounds_without_the_warm_up(clock: list[float]) -> None:
    sides = {
        "eager": takes(clock, 9, 9, 9, 0.004, 0.002, 0.1, 0.003, 0.0025),
        "compile": takes(clock, 60, 9, 9, 0.001),
        "ours": takes(clock, 9, 9, 9, 0.002),
        "copy": takes(clock, 9, 9, 9, 0.0005),
    }
    found = ops._measure("case", sides, CPU, 5)
    assert found.milliseconds == pytest.approx({"eager": 3.0, "compile": 1.0, "ours": 2.0, "copy": 0.5})
    assert found.spread["eager"] == pytest.approx((2.0, 100.0))
    assert found.ratio("eager") == pytest.approx(1.5), "eager took one and a half times as long as ours"
    assert found.ratio("compile") == pytest.approx(0.5)
    assert Measured("x", {"ours": 1.0}, {}).ratio("eager") is None


def test_a_tiny_case_is_told_for_one_of_its_many_calls(clock: list[float]) -> None:
    found = ops._measure("tiny x", {"ours": takes(clock, 0.5)}, CPU, 3)
    assert found.milliseconds == pytest.approx({"ours": 500.0 / 200})
    assert found.spread["ours"] == pytest.approx((2.5, 2.5))


def test_the_table_has_each_number_in_its_column() -> None:
    measured = [
        Measured("a case", {"eager": 3.0, "compile": 1.0, "ours": 2.0, "copy": 0.5}, {}),
        Measured("another", {"eager": 4.0, "ours": 2.0}, {}),
    ]
    head, first, second = table_lines(measured)
    assert head.split() == [
        *("case", "eager", "compile", "ours", "copy"),
        *("eager/ours", "compile/ours", "copy/ours"),
    ]
    assert first.split() == ["a", "case", "3.0000", "1.0000", "2.0000", "0.5000", "1.50×", "0.50×", "0.25×"]
    assert second.split() == ["another", "4.0000", "2.0000", "2.00×"]
    ends = [head.index(name) + len(name) for name in ("eager", "compile", "ours", "copy", "eager/ours")]
    shown = ("3.0000", "1.0000", "2.0000", "0.5000", "1.50×")
    assert [first.index(words) + len(words) for words in shown] == ends, "a number ends where its title does"


def test_the_report_has_the_ratios_and_no_path_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"version": "0.4", "cpu": {"sha256": "aa", "path": "/home/me"}, "cuda": None}
    monkeypatch.setitem(sys.modules, "neuscale_ops", SimpleNamespace(build_info=lambda: info))
    measured = Measured("a", {"eager": 3.0, "compile": 1.0, "ours": 2.0, "copy": 0.5}, {"ours": (1.0, 4.0)})
    found = ops.report(CPU, [measured])
    assert found["neuscale_ops"] == {"version": "0.4", "cpu": {"sha256": "aa"}, "cuda": None}
    assert (found["threads"], found["torch"]) == (torch.get_num_threads(), torch.__version__)
    [case] = found["cases"]
    assert (case["eager_over_ours"], case["compile_over_ours"]) == (1.5, 0.5)
    assert (case["milliseconds"]["copy"], case["spread"]["ours"]) == (0.5, (1.0, 4.0))


def test_only_the_cases_that_are_asked_for_are_measured(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {"ours": takes(clock, 0.002)}
    cases = [("one gelu", lambda: sides), ("two crop", lambda: sides), ("three gelu", lambda: sides)]
    monkeypatch.setattr(ops, "_cases", lambda _device: iter(cases))
    assert [m.case for m in ops.measure_ops(CPU, 3, "gelu")] == ["one gelu", "three gelu"]
    assert len(list(ops.measure_ops(CPU, 3))) == 3


class Peer(nn.Module):
    """Fake model that advances the clock by `seconds` per image."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.head = nn.Linear(3, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.training
        self.clock[0] += self.seconds * len(images)
        out: torch.Tensor = self.head(images.mean((2, 3)))
        return out


@pytest.fixture
def two_sides(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's model takes 4 ms per image, ours 1 ms and 3 GFLOP; the peak is 12 TFLOP/s."""
    monkeypatch.setattr(step, "CASES", (Case("swin_t", 8, 0.2, lambda: Peer(clock, 0.004)),))
    monkeypatch.setattr(step, "create_model", lambda *_: Peer(clock, 0.001))
    monkeypatch.setattr(step, "choose_ops", lambda *_: SimpleNamespace(kind="eager"))
    monkeypatch.setattr(step, "training_flops", lambda *_: 3e9)
    monkeypatch.setattr(step, "peak_tflops", lambda *_: 12.0)


@pytest.mark.usefixtures("two_sides")
def test_a_step_is_compared_with_torchvisions() -> None:
    theirs, ours = step.measure_steps(CPU, "fp32", 20, 3, with_compile=False)
    assert (theirs.side, ours.side, ours.model, ours.batch) == (
        "torchvision",
        "ours, eager",
        "swin_t, 8×8",
        20,
    )
    assert theirs.milliseconds == pytest.approx(80.0)
    assert theirs.images_per_second == pytest.approx(250.0)
    assert (theirs.ratio, theirs.tflops, theirs.mfu) == (1.0, None, None)
    assert ours.milliseconds == pytest.approx(20.0)
    assert ours.images_per_second == pytest.approx(1000.0)
    assert ours.ratio == pytest.approx(4.0), "ours does four times as many images"
    assert ours.tflops == pytest.approx(1000 * 3e9 / 1e12)
    assert ours.mfu == pytest.approx(3.0 / 12.0)


@pytest.mark.usefixtures("two_sides")
def test_the_command_prints_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    words = ["bench", "step", "--device", "cpu", "--precision", "bf16", "--batch", "20", "--rounds", "1"]
    try:
        assert run([*words, "--no-compile"]) == 0
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "a step of 20 images, bf16, on cpu"
    rows = [
        [cell.strip() for cell in line.strip("│┃").split("┃" if "┃" in line else "│")] for line in lines[1:]
    ]
    assert ["model", "side", "ms", "img/s", "ratio", "TFLOP/s", "MFU"] in rows
    assert ["swin_t, 8×8", "torchvision", "80", "250", "1.00×", "", ""] in rows
    assert ["swin_t, 8×8", "ours, eager", "20", "1,000", "4.00×", "3.00", "25.0%"] in rows
    assert "swin_t, 8×8: ours, eager 1,000 img/s" in said.err


def test_the_median_is_of_the_rounds_and_sides_take_turns(clock: list[float]) -> None:
    order: list[str] = []

    def side(name: str, *seconds: float) -> Callable[[], None]:
        work = takes(clock, *seconds)
        return lambda: order.append(name) or work()

    steps = {"a": side("a", 9, 9, 1, 5, 2), "b": side("b", 9, 9, 4, 4, 4)}
    times = step._turns(steps, CPU, 3)
    assert times == {"a": [1, 5, 2], "b": [4, 4, 4]}
    assert statistics.median(times["a"]) == 2
    assert order == list("aabb" + "ab" * 3)


def test_gradients_are_of_the_loss_and_do_not_pile_up() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    seen: list[Any] = []
    weight = model[1].weight
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([1, 2, 3, 4])
    one = step._step(model, images, labels, "fp32")
    one()
    one()
    [expected] = torch.autograd.grad(F.cross_entropy(model(images), labels), [weight])
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(seen[1], expected)
    assert weight.grad is None


def test_words_of_bench_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["step", "--device", "tpu"], ["step", "--precision", "int8"], ["ops", "--device", "mps"]):
        assert run(["bench", *words]) == 2
    assert Said(0, *capsys.readouterr()).words.count("expected") == 3
