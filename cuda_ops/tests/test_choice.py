"""Choice between the implementations of Linear with GELU, with a fake GPU and fake timings."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from neuscale_ops import choice


def tensors(rows=6, training=False):
    shapes = [(2, rows, 8), (16, 8), (16,)]
    return tuple(torch.zeros(shape, requires_grad=training) for shape in shapes)


def epilogue(*_tensors):
    raise AssertionError("only timed, by a stand-in")


def separate(*_tensors):
    raise AssertionError("only timed, by a stand-in")


@pytest.fixture
def timed(monkeypatch):
    """Fake GPU that supports the epilogue: `milliseconds` of each implementation, and the timed `calls`."""
    state = SimpleNamespace(milliseconds={epilogue: 1.0, separate: 2.0}, calls=[])

    def milliseconds(function, given, training):
        state.calls.append((function, training))
        if isinstance(state.milliseconds[function], Exception):
            raise state.milliseconds[function]
        return state.milliseconds[function]

    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "epilogue_fits", lambda given: given[0].shape[-1] == 8)
    monkeypatch.setattr(choice, "_milliseconds", milliseconds)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    return state


def chosen(implementation="auto", tanh=True, given=None, name="some_op"):
    return choice.choose(name, implementation, tanh, given or tensors(), epilogue, separate)


@pytest.mark.parametrize(("one", "other", "wins"), [(1.0, 2.0, True), (2.0, 1.0, False), (1.0, 1.0, False)])
def test_auto_is_the_faster(timed, one, other, wins):
    timed.milliseconds = {epilogue: one, separate: other}
    assert chosen() is wins


def test_one_that_cuda_cannot_do_loses(timed):
    timed.milliseconds[epilogue] = RuntimeError("no algorithm")
    assert chosen() is False


def test_it_is_timed_once_for_each_op_shape_and_mode(timed):
    for _ in range(3):
        assert chosen()
    assert timed.calls == [(epilogue, False), (separate, False)]
    chosen(given=tensors(training=True))
    assert timed.calls[2:] == [(epilogue, True), (separate, True)]
    with torch.no_grad():
        chosen(given=tensors(training=True))
    assert len(timed.calls) == 4
    chosen(given=tensors(rows=7))
    chosen(name="other_op")
    assert len(timed.calls) == 8
    reports = choice.choices()
    assert [report["op"] for report in reports] == ["some_op"] * 3 + ["other_op"]
    assert [report["training"] for report in reports] == [False, True, False, False]
    assert "(12, " in reports[0]["shapes"] and "(14, " in reports[2]["shapes"]
    assert {report["implementation"] for report in reports} == {"epilogue"}


def test_what_is_asked_for_is_not_timed(timed):
    assert chosen("epilogue") is True
    assert chosen("separate") is False
    assert chosen(tanh=False) is False
    with pytest.raises(ValueError, match=r"^implementation: the epilogue is for the tanh form"):
        chosen("epilogue", tanh=False)
    with pytest.raises(ValueError, match=r"one of auto, epilogue, separate, not 'fastest'"):
        chosen("fastest")
    assert timed.calls == []


@pytest.mark.parametrize("where", ["torch.compiler.is_compiling", "torch.cuda.is_current_stream_capturing"])
def test_where_nothing_can_be_timed_it_is_separate(timed, monkeypatch, where):
    monkeypatch.setattr(where, lambda: True)
    assert chosen() is False
    assert timed.calls == []


def test_the_time_is_the_median_after_the_warm_up(monkeypatch):
    elapsed = iter([900.0, 800.0, 700.0, *[float(n) for n in (7, 1, 9, 3, 5, 2, 8, 4, 6, 10)]])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        def synchronize(self):
            pass

        def elapsed_time(self, _end):
            return next(elapsed)

    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.device", lambda _device: nullcontext())
    grads = []

    def function(x, w):
        grads.append((torch.is_grad_enabled(), x.requires_grad, w.requires_grad))
        return x @ w

    given = torch.zeros(2, 3), torch.zeros(3, 2)
    assert choice._milliseconds(function, given, True) == 6.0
    assert grads == [(True, True, True)] * 13
    assert not given[0].requires_grad
    elapsed = iter([1.0] * 13)
    grads.clear()
    choice._milliseconds(function, given, False)
    assert grads == [(False, False, False)] * 13


def stand_in(shape, dtype=torch.bfloat16, device="cuda"):
    shape = torch.Size(shape)
    return SimpleNamespace(shape=shape, dtype=dtype, device=SimpleNamespace(type=device), numel=shape.numel)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"device": "cpu"}, False),
        ({"rows": 0}, False),
        ({"rows": 5}, True),
        ({"inputs": 12}, False),
        ({"outputs": 12}, False),
        ({"bias_dtype": torch.float32}, False),
        ({"kernel": False}, False),
    ],
)
def test_what_cublaslt_takes(monkeypatch, change, fits):
    given = {"dtype": torch.bfloat16, "device": "cuda", "rows": 3, "inputs": 16, "outputs": 24, **change}
    monkeypatch.setattr(
        "torch._C._dispatch_has_kernel_for_dispatch_key", lambda _name, _key: given.get("kernel", True)
    )
    x = stand_in((given["rows"], given["inputs"]), given["dtype"], given["device"])
    weight = stand_in((given["outputs"], given["inputs"]), given["dtype"])
    bias = stand_in((given["outputs"],), given.get("bias_dtype", given["dtype"]))
    assert choice.epilogue_fits((x, weight, bias)) is fits
