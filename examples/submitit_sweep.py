"""A learning-rate sweep with submitit: one job per learning rate, requeued until its run has finished.

    python examples/submitit_sweep.py --partition gpu

The same from the command line: neuscale submit experiment=quickstart optim.lr=1e-3,3e-4
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit

EXIT_RESUME = 75


class Training:
    """One run in a subprocess. submitit pickles this object, calls it in the job, and calls `checkpoint`."""

    def __init__(self, words: list[str], name: str) -> None:
        self.words, self.name = words, name

    def __call__(self) -> str:
        command = [
            sys.executable,
            "-P",
            "-m",
            "neuscale",
            "train",
            *self.words,
            f"run.name={self.name}",
            "--resume",
        ]
        self.process = subprocess.Popen(command)
        code = self.process.wait()
        if code != 0:
            raise RuntimeError(f"{self.name}: neuscale train ended with {code}")
        return self.name

    def checkpoint(self) -> Any:
        """Save the run and resubmit it; called on SIGUSR2, before the time limit or at a preemption."""
        self.process.send_signal(signal.SIGUSR2)
        # Not Popen.wait(): this signal handler may have interrupted the same thread inside it.
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        if ended is None or ended.si_status != EXIT_RESUME:  # finished or failed: the next job shows which
            print(f"{self.name}: it did not stop to be resumed")
        return submitit.helpers.DelayedSubmission(Training(self.words, self.name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--partition")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/jobs/submitit"))
    parser.add_argument("--name", default="sweep")
    parser.add_argument("--lr", nargs="+", default=["1e-3", "3e-4"])
    parser.add_argument("words", nargs="*", default=["experiment=quickstart"], metavar="FIELD=VALUE")
    asked = parser.parse_args()

    executor = submitit.AutoExecutor(asked.folder, cluster="slurm", slurm_max_num_timeout=100)
    executor.update_parameters(
        name=asked.name,
        timeout_min=asked.minutes,
        cpus_per_task=asked.cpus,
        gpus_per_node=asked.gpus,
        slurm_partition=asked.partition,
        slurm_signal_delay_s=120,
    )
    with executor.batch():
        jobs = [
            executor.submit(Training([*asked.words, f"optim.lr={lr}"], f"{asked.name}-lr{lr}"))
            for lr in asked.lr
        ]
    for job in jobs:
        print(f"job {job.job_id}: {job.paths.stderr}")
    for job in jobs:
        print(f"{job.result()} is finished")


if __name__ == "__main__":
    main()
