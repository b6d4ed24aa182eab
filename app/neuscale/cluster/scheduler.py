"""What a batch scheduler tells a job."""

import os

# Slurm, PBS, LSF, Grid Engine.
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")


def in_batch_job() -> bool:
    """Whether this process runs in a job of a batch scheduler."""
    return any(os.environ.get(name) for name in _JOB_VARIABLES)
