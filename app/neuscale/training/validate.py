"""Checks of a configuration before it is trained, without touching data or a device."""

from neuscale.config import Config
from neuscale.data.sampling import check_shares
from neuscale.evaluation.own_metrics import check_metric_names
from neuscale.models.registry import check_arch
from neuscale.training.accumulation import accumulation_steps
from neuscale.training.stopping import Deadline
from neuscale.training.tracking.accelerate_trackers import check_trackers


def validate(config: Config, world_size: int) -> None:
    """Raise UsageError for a configuration that cannot be trained on `world_size` ranks."""
    train = config.train
    check_shares(train.global_batch_size, world_size)
    accumulation_steps(train.micro_batch, train.global_batch_size, world_size)
    Deadline(config.run.time_limit)
    check_arch(config.model)
    check_metric_names(config.eval.metric, config.eval.functions)
    check_trackers(config.tracking)
