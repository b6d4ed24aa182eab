"""Training on a CPU does not fetch its memory from the system anew at each step."""

import os
import platform
import subprocess
import sys

import pytest

TOUCH = """
import resource, torch
{before}
block = 32 << 20
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(block, dtype=torch.uint8).fill_(1)
began = faults()
for _ in range(40):
    torch.empty(block, dtype=torch.uint8).fill_(1)
print((faults() - began) * resource.getpagesize() / block)
"""
KEEP = "from neuscale.training.device import create_accelerator; create_accelerator('cpu', 'fp32')"


def blocks_mapped(before: str, **env: str) -> float:
    """How many of forty blocks, each freed before the next, had their pages mapped anew."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", TOUCH.format(before=before)],
        env=plain | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is set")
def test_memory_freed_in_a_step_serves_the_next() -> None:
    assert blocks_mapped("") > 36  # what it is for
    assert blocks_mapped(KEEP) < 16
    # A threshold of the user's own stays.
    assert blocks_mapped(KEEP, MALLOC_MMAP_THRESHOLD_="65536") > 36
