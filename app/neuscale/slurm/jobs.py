"""The jobs that were submitted from here, and their current states."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from neuscale.analysis.listing import RunRow
from neuscale.errors import UserError
from neuscale.fs import make_folder, write_atomically
from neuscale.paths import runs_root
from neuscale.runs.manifest import read_manifest
from neuscale.slurm.commands import ask
from neuscale.slurm.script import Job
from neuscale.units import now
from neuscale.untrusted import is_plain_name, read_json

State = Literal["pending", "running", "requeued", "finished", "failed", "cancelled", "unknown"]


_STATES: dict[str, State] = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "REQUEUED": "requeued",
    "REQUEUE_HOLD": "requeued",
    "REQUEUE_FED": "requeued",
    "SPECIAL_EXIT": "requeued",
    "PREEMPTED": "requeued",
    "COMPLETED": "finished",
    "CANCELLED": "cancelled",
}


_OF_MANIFEST: dict[str, State] = {"finished": "finished", "failed": "failed"}


@dataclass(frozen=True)
class SubmittedJob:
    """One run in a job: job number, index in a job array (None: no array), name of the run, state."""

    job: str
    index: int | None
    run: str
    state: State
    submitted: str
    reason: str = ""


# Reasons for Slurm's states of jobs that ended early.
_REASONS = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "out of time",
    "DEADLINE": "out of time",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not start",
    "LAUNCH_FAILED": "it could not be started",
    "RECONFIG_FAIL": "it could not be started",
    "CANCELLED": "cancelled",
    "PREEMPTED": "preempted",
}


@dataclass(frozen=True)
class Record:
    """A submission, as stored in `RUNS/jobs/NUMBER.json`."""

    job: str
    submitted: str
    names: list[str]
    command: list[str]
    nodes: int
    gpus: int
    processes: int
    log: str


def record_submission(job: Job, number: str, script: str) -> Record:
    """Store a record and the script of a submission beside the jobs' output."""
    log = job.logs / (f"{number}-%a.log" if len(job.runs) > 1 else f"{number}.log")
    names = [words[-1].partition("=")[2] for words in job.runs]
    record = Record(number, now(), names, job.command, job.nodes, job.gpus, job.processes, str(log))
    make_folder(job.logs)
    write_atomically(job.logs / f"{number}.sbatch", script)
    write_atomically(job.logs / f"{number}.json", json.dumps(vars(record), indent=2) + "\n")
    return record


def submitted_jobs() -> list[SubmittedJob]:
    """Every run that was submitted into the runs folder, the newest job first.

    The state is from Slurm (squeue, else sacct, else scontrol), else from the run's manifest, as without
    Slurm; "unknown" if that does not tell it either.
    """
    records = sorted(_records(), key=lambda record: record.submitted, reverse=True)
    states: dict[str, tuple[State, str]] = {}
    wanted = {key for record in records for key in _keys(record)}
    for source in (_queued, _accounted, _remembered):
        missing = wanted - states.keys()
        if missing:
            states |= {key: state for key, state in source(missing).items() if key in missing}
    found = []
    for record in records:
        for index, (key, name) in enumerate(zip(_keys(record), record.names, strict=True)):
            state, reason = states.get(key) or (_of_run(name), "")
            place = index if len(record.names) > 1 else None
            found.append(SubmittedJob(record.job, place, name, state, record.submitted, reason))
    return found


def _records() -> Iterable[Record]:
    for path in (runs_root() / "jobs").glob("*.json"):
        try:
            record = Record(**read_json(path))
            if re.fullmatch(r"[0-9]+", record.job) and record.names and all(map(is_plain_name, record.names)):
                yield record
        except (OSError, ValueError, TypeError):  # not one of our files, or of a later version
            continue


def _keys(record: Record) -> list[str]:
    """Slurm's job ID of each run: 12, or 12_0, 12_1, … in an array."""
    if len(record.names) == 1:
        return [record.job]
    return [f"{record.job}_{index}" for index in range(len(record.names))]


def _queued(_wanted: set[str]) -> dict[str, tuple[State, str]]:
    """States of this user's pending and running jobs."""
    fields = "ArrayJobID:32,ArrayTaskID:32,State:32,RestartCnt:32"
    user = str(os.getuid())
    found: dict[str, tuple[State, str]] = {}
    for line in _lines("squeue", "--noheader", "--array", f"--user={user}", f"--Format={fields}"):
        job, index, state, restarts = line.split()
        key = job if index == "N/A" else f"{job}_{index}"
        found[key] = _state(state, restarts)
    return found


def _accounted(wanted: set[str]) -> dict[str, tuple[State, str]]:
    """States of jobs from Slurm's accounting, if the cluster has it."""
    jobs = ",".join(sorted({key.partition("_")[0] for key in wanted}))
    found: dict[str, tuple[State, str]] = {}
    for line in _lines("sacct", "-nPX", f"--jobs={jobs}", "--format=JobID,State"):
        key, _, state = line.partition("|")
        found[key] = _state(state, "0")
    return found


def _remembered(wanted: set[str]) -> dict[str, tuple[State, str]]:
    """States of jobs from Slurm's controller, which keeps ended jobs for some minutes."""
    found: dict[str, tuple[State, str]] = {}
    for job in sorted({key.partition("_")[0] for key in wanted}):
        for line in _lines("scontrol", "show", "job", "--oneliner", job):
            fields = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
            key = f"{job}_{fields['ArrayTaskId']}" if "ArrayTaskId" in fields else job
            found[key] = _state(fields.get("JobState", ""), fields.get("Restarts", "0"))
    return found


def _state(word: str, restarts: str) -> tuple[State, str]:
    """State of a job, and the reason if it ended early."""
    first = word.split()[0].rstrip("+") if word else ""
    state = _STATES.get(first, "failed")
    requeued = state == "pending" and restarts not in ("", "0")
    return "requeued" if requeued else state, _REASONS.get(first, "")


def _lines(*command: str) -> list[str]:
    """Output lines of a Slurm command; none if it is missing, does not know the job, or fails."""
    try:
        return [line for line in ask(*command).splitlines() if line.strip()]
    except UserError:
        return []


def _of_run(name: str) -> State:
    manifest: dict[str, Any] = read_manifest(Path(runs_root(), name, "manifest.json"))
    return _OF_MANIFEST.get(str(manifest.get("status")), "unknown")


def with_jobs(rows: Iterable[RunRow]) -> Iterator[RunRow]:
    """The rows, completed with the state of their jobs, and one for each job whose run has not started.

    A run whose newest job waits is `pending`, or `requeued` if it was preempted or ran out of time.
    """
    jobs: dict[str, SubmittedJob] = {}
    for job in submitted_jobs():  # the newest first
        jobs.setdefault(job.run, job)
    for row in rows:
        mine = jobs.pop(row.name, None)
        if mine is None:
            yield row
            continue
        waits = row.state != "running" and mine.state in ("pending", "requeued")
        note = "; ".join(filter(None, (_job_words(mine), row.note)))
        yield replace(row, state=mine.state if waits else row.state, note=note)
    for job in jobs.values():
        if job.state in ("pending", "running", "requeued", "failed"):
            yield RunRow(job.run, job.state, started=job.submitted, note=_job_words(job))


def _job_words(job: SubmittedJob) -> str:
    number = f"job {job.job}" + (f"_{job.index}" if job.index is not None else "")
    return f"{number}: {job.reason}" if job.reason else number
