"""Training on a CPU reuses freed memory instead of having new pages mapped at each step."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from neuscale import hardware as host_memory
from neuscale.hardware import keep_freed_memory

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
KEEP = "from neuscale.hardware import keep_freed_memory; keep_freed_memory()"


def blocks_mapped(before: str, **env: str) -> float:
    """Number of blocks, out of forty each freed before the next, whose pages were mapped anew."""
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
    assert blocks_mapped("") > 36  # the default behaviour: nearly every block is mapped anew
    assert blocks_mapped(KEEP) < 16
    # A threshold set by the user is kept.
    assert blocks_mapped(KEEP, MALLOC_MMAP_THRESHOLD_="65536") > 36


@pytest.mark.parametrize("refused", [None, -4, -1, -2])
def test_large_blocks_stay_in_the_heap_which_grows_by_64_mib_and_is_not_trimmed(
    monkeypatch: pytest.MonkeyPatch, refused: int | None
) -> None:
    """Options of mallopt: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1, M_TOP_PAD -2; it returns 0 on failure."""
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    said: list[tuple[int, int]] = []

    def mallopt(option: int, value: int) -> int:
        said.append((option, value))
        return int(option != refused)

    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _name: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert keep_freed_memory() == (refused is None)
    if refused is None:
        assert sorted(said) == [(-4, 0), (-2, 67_108_864), (-1, -1)]


@pytest.mark.parametrize(
    ("variable", "libc"), [("GLIBC_TUNABLES", "glibc"), ("MALLOC_ARENA_MAX", "glibc"), ("OTHER", "musl")]
)
def test_settings_of_the_users_and_other_libraries_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, libc: str
) -> None:
    monkeypatch.setenv(variable, "x")
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "1"))
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda _name: pytest.fail("it was set"))
    assert not keep_freed_memory()
