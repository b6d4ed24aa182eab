"""Profiles cover the documented steps, and the saver measures the save time that the deadline uses."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from conftest import ListeningProgress
from neuscale.runs.metrics import MetricsFile, read_metrics
from neuscale.training import background_saver as saver_module
from neuscale.training.background_saver import BackgroundSaver
from neuscale.training.profiling import STEPS, StepProfiler

CPU = torch.device("cpu")


def profiled(folder: Path, steps: int, progress: ListeningProgress) -> set[str]:
    """Return the names of the steps in a recorded trace."""
    with StepProfiler(folder, CPU, True, progress) as profiler:
        for number in range(steps):
            with record_function(f"our step {number}"):
                torch.ones(8, 8) @ torch.ones(8, 8)
            profiler.step()
    trace = json.loads((folder / "trace.json").read_text())
    return {event["name"] for event in trace["traceEvents"] if str(event.get("name")).startswith("our step")}


def test_the_first_steps_are_let_by_and_four_are_recorded(
    tmp_path: Path, listening: ListeningProgress
) -> None:
    assert STEPS == 8
    assert profiled(tmp_path / "p", 11, listening) == {f"our step {number}" for number in (4, 5, 6, 7)}
    assert listening.warnings == []
    table = next(text for text in listening.messages if "aten::mm" in text and " ms × " in text)
    assert "× 4 " in table, "one matrix product in each of four steps"


def test_the_most_expensive_ops_by_their_share_and_time_each(
    tmp_path: Path, listening: ListeningProgress
) -> None:
    def event(key: str, microseconds: float, count: int) -> Any:
        names = {"self_cpu_time_total": microseconds, "self_device_time_total": 1e9 - microseconds}
        return SimpleNamespace(key=key, count=count, **names)

    class Averages(list[Any]):
        def table(self, **_: Any) -> str:
            return "all of them"

    events = Averages([event("small", 2000.0, 4), event("ProfilerStep*", 9e9, 1), event("large", 6000.0, 3)])
    recorded = SimpleNamespace(export_chrome_trace=lambda _path: None, key_averages=lambda: events)
    StepProfiler(tmp_path, CPU, False, listening)._report(recorded)
    assert (tmp_path / "ops.txt").read_text() == "all of them"
    assert listening.messages[1:-1] == [
        "   75.0%      2.000 ms × 3     large",
        "   25.0%      0.500 ms × 4     small",
    ]


def test_a_profile_that_is_not_wanted_is_none(tmp_path: Path, listening: ListeningProgress) -> None:
    with StepProfiler(tmp_path / "profile", CPU, False, listening) as profiler:
        for _ in range(9):
            profiler.step()
    assert (list(tmp_path.iterdir()), listening.messages, listening.warnings) == ([], [], [])


def test_the_slowest_save_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(saver_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    saver, threads = BackgroundSaver(), []

    def write(seconds: float) -> None:
        now[0] += seconds
        threads.append(threading.current_thread())

    for seconds, slowest in ((3.0, 3.0), (7.0, 7.0), (5.0, 7.0)):
        saver.save(write, seconds)
        saver.wait()
        assert saver.seconds == slowest
    saver.close()
    assert threading.main_thread() not in threads


def test_tensors_of_another_form_are_copied_whole() -> None:
    """The buffers of the previous save are reused only for the same shape, dtype and strides."""
    saver, seen = BackgroundSaver(), []
    values = [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(3, 2) + 1,
        torch.arange(6.0, dtype=torch.float64).reshape(3, 2) / 7,
        (torch.arange(6.0, dtype=torch.float64).reshape(2, 3) / 7).t(),
        torch.arange(6, dtype=torch.int64),
    ]
    for value in values:
        saver.save(
            lambda copy: seen.append([tensor.clone() for tensor in copy["x"]]), {"x": (value, value * 2)}
        )
        saver.wait()
    saver.close()
    for value, copies in zip(values, seen, strict=True):
        for copy, expected in zip(copies, (value, value * 2), strict=True):
            assert copy.dtype == expected.dtype
            assert torch.equal(copy, expected)
            assert copy.stride() == expected.stride()


def test_curves_keep_what_is_up_to_the_step_and_lose_what_is_beyond(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in (1, 2, 3):
        first.write("train", step, {"loss": 1.0 / step})
    first.write("val", 3, {"top1": float("nan")})
    first.close()
    again = MetricsFile(path, 2)
    again.write("train", 3, {"loss": 9.0})
    found = [(line["split"], line["step"], line["loss"]) for line in read_metrics(path)]
    again.close()
    assert found == [("train", 1, 1.0), ("train", 2, 0.5), ("train", 3, 9.0)], "each line is there at once"
    MetricsFile(path, 0).close()
    assert list(read_metrics(path)) == []
