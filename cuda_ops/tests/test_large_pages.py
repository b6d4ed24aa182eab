"""Large results request large (huge) pages, and stop requesting them while the kernel is slow."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPS = Path(__file__).parents[1]
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or not SETTING.exists(), reason="no large pages in this kernel"
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
]

BUGS = [
    ("a slow page changes nothing", "left_.store(pause, std::memory_order_relaxed)", "(void)pause"),
    ("it never asks again", "left_.fetch_sub(1, std::memory_order_relaxed) <= 0", "false"),
    ("it asks for all but the rest", "end - first - kLargePage, MADV_HUGEPAGE", "0, MADV_HUGEPAGE"),
    (
        "it touches what is not the result's",
        "*reinterpret_cast<volatile char*>(first)",
        "static_cast<volatile char*>(begin)[-50]",
    ),
]


def tried(sources: Path, to: Path) -> subprocess.CompletedProcess[str]:
    binary = to / "large_pages"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{sources}"]
    command = ["g++", *options, str(OPS / "tests" / "large_pages.cpp"), "-o", str(binary)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    # A program that never asks again loops forever.
    limited = f"ulimit -t 4; exec {shlex.quote(str(binary))}"
    return subprocess.run(["sh", "-c", limited], capture_output=True, text=True, check=False)


def test_large_pages_are_asked_for_while_they_are_quick(tmp_path):
    done = tried(OPS / "csrc", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("what", "text", "broken"), BUGS, ids=[bug[0] for bug in BUGS])
def test_a_planted_bug_is_caught(tmp_path, what, text, broken):
    sources = tmp_path / "csrc"
    shutil.copytree(OPS / "csrc", sources)
    header = sources / "cpu" / "large_pages.h"
    sound = header.read_text()
    assert text in sound, "the header has changed: plant the bug anew"
    header.write_text(sound.replace(text, broken, 1))
    assert tried(sources, tmp_path).returncode != 0, what
