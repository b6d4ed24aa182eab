"""A worker's exit runs its atexit handlers, and no library's destructor changes its exit code."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, ctypes, os, sys
from neuscale.distributed.rank import end_process
abort = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: os.abort())
libc = ctypes.CDLL(None)
libc.__cxa_atexit(abort, None, None)  # as a thread of gloo does that outlives main
atexit.register(print, "registered")
sys.stdout.write("written ")
end_process(75)
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_one_of_several_ends_without_the_destructors_of_libraries(processes: str) -> None:
    environment = {**os.environ, "WORLD_SIZE": processes, "RANK": "0"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.stdout == "written registered\n"
    if processes == "2":
        assert done.returncode == 75
    else:
        assert done.returncode < 0, "that the destructor is there"
