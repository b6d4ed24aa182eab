"""Starts the processes of a run on this machine and ends them together."""

import json
import logging
import os
import signal
import sys
import time
import uuid
from pathlib import Path

from neuscale.cluster.cores import available_cores
from neuscale.errors import EXIT_FAILED, EXIT_RESUME, UsageError, WorkerError

# A worker started from here reports its error to us instead of to the terminal.
LAUNCHED = "NEUSCALE_LAUNCHED"

# How long workers that were told to stop may take to save before they are killed.
SAVE_SECONDS = 600


def check_gpus(wanted: int) -> None:
    """Raises UsageError where there are fewer than `wanted` usable GPUs."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < wanted:
        found = "there is none" if there == 0 else f"there {'is' if there == 1 else 'are'} {there}"
        raise UsageError(
            f"{wanted} GPU{'s' if wanted > 1 else ''} asked for, and {found} that can be used here.",
            "Ask for fewer (0 is the CPU); 'neuscale doctor' says what it finds.",
        )


def started_by_launcher() -> bool:
    """Whether a launcher (ours, torchrun, accelerate) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def report_to_launcher(problem: str, fix: str) -> bool:
    """Leaves a worker's error for `launch` to raise; False where no `launch` started this process."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if LAUNCHED not in os.environ or not file:
        return False
    message = json.dumps({"problem": problem, "fix": fix})
    Path(file).write_text(json.dumps({"message": message, "timestamp": str(int(time.time()))}))
    return True


def launch(words: list[str], processes: int) -> int:
    """Runs `neuscale WORDS` in `processes` processes that find each other; returns their exit code.

    When one fails the others are ended, and the first one's error is raised as WorkerError.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[LAUNCHED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port, whatever else runs on this machine
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.2,
        shutdown_timeout=SAVE_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "neuscale", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise WorkerError(
                f"process {rank} of {processes} was ended by {failure.signal_name()}.",
                "If memory ran out: a smaller train.global_batch_size, or more train.accumulation_steps.",
                EXIT_FAILED,
            ) from None
        try:
            told = json.loads(failure.message)
            problem, fix = told["problem"], told["fix"]
        except (ValueError, TypeError, KeyError):
            return int(failure.exitcode)  # it said it itself
        raise WorkerError(problem, fix, failure.exitcode) from None
    except SignalException as error:
        # The workers have had the signal too, and have saved.
        return EXIT_RESUME if error.sigval in (signal.SIGTERM, signal.SIGINT) else 128 + int(error.sigval)
    return 0
