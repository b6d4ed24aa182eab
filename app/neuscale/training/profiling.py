"""Profile a few steps: a trace for a browser, a snapshot of GPU memory, and the most expensive ops."""

from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from neuscale.progress import Progress

# Steps that are skipped, that warm up the profiler, and that are recorded.
_WAIT, _WARMUP, _ACTIVE = 3, 1, 4
STEPS = _WAIT + _WARMUP + _ACTIVE
_TOP = 10


class StepProfiler:
    """Profiles the first steps of this process into `folder`; does nothing unless `enabled`."""

    def __init__(self, folder: Path, device: torch.device, enabled: bool, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self._cuda = device.type == "cuda"
        self._profile: Any = None  # torch's profiler is only partly typed
        self._steps = 0
        if enabled:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
            self._profile = profile(
                activities=activities,
                schedule=schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1),
                on_trace_ready=self._report,
                profile_memory=True,
            )

    def __enter__(self) -> "StepProfiler":
        if self._profile is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._cuda:
                torch.cuda.memory._record_memory_history(max_entries=100_000)
            self._profile.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._end(kind, error, trace)
            if kind is None:
                self.progress.warning(
                    f"train.profile: the run ended after {self._steps} of the {STEPS} steps that it takes"
                )

    def step(self) -> None:
        """Mark the end of a step."""
        if self._profile is None:
            return
        self._steps += 1
        self._profile.step()
        if self._steps == STEPS:
            self._end(None, None, None)

    def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._profile is not None
        done, self._profile = self._profile, None
        done.__exit__(kind, error, trace)
        if self._cuda:
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)

    def _report(self, recorded: Any) -> None:
        recorded.export_chrome_trace(str(self.folder / "trace.json"))
        time_of = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        averages = recorded.key_averages()
        ops = self.folder / "ops.txt"
        ops.write_text(averages.table(sort_by=time_of, max_name_column_width=48))
        events = [event for event in averages if not event.key.startswith("ProfilerStep")]
        events.sort(key=attrgetter(time_of), reverse=True)
        total = sum(map(attrgetter(time_of), events)) or 1.0
        self.progress.message(f"the most expensive ops of {_ACTIVE} steps (all of them in {ops}):")
        for event in events[:_TOP]:
            time = getattr(event, time_of)
            each = time / max(1, event.count) / 1e3
            self.progress.message(f"  {time / total:6.1%}  {each:9.3f} ms × {event.count:<5} {event.key}")
        self.progress.message(f"trace for chrome://tracing or Perfetto: {self.folder / 'trace.json'}")
