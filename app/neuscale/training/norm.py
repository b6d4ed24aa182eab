"""BatchNorm's running statistics in training on several processes."""

import torch.distributed as dist
from torch import nn


def share_running_statistics(model: nn.Module) -> None:
    """Gives all processes the running means and variances of process 0.

    Each process gathers those of its own share of the batches, and training does not read them.
    Process 0's are the ones in a checkpoint, so with them all evaluate the saved model; and as
    they are never changed by the others', a run that goes on from any step has the same bits.
    DistributedDataParallel would send them before each forward, and leave the last step out.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            for buffer in module.buffers(recurse=False):
                dist.broadcast(buffer, src=0)
