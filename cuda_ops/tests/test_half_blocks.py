"""float16 conversion by the processor's F16C instructions equals the portable integer conversion."""

import shutil
import subprocess
from pathlib import Path

import pytest

OPS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with sanitizers")

BUGS = [
    ("rounding", "_MM_FROUND_TO_NEAREST_INT", "_MM_FROUND_TO_ZERO"),
    ("beyond the end", "for (; i + 8 <= count; i += 8)\n    _mm256", "for (; i < count; i += 8)\n    _mm256"),
    ("the last is left out", "i < count; ++i) store(to + i,", "i < count - 1; ++i) store(to + i,"),
    ("the wrong place", "_mm256_storeu_ps(to + i,", "_mm256_storeu_ps(to + (i & ~15),"),
]  # fmt: skip


def differing(sources: Path, to: Path) -> subprocess.CompletedProcess[str]:
    binary = to / "half_blocks"
    options = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    options += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{sources}"]
    command = ["g++", *options, str(OPS / "tests" / "half_blocks.cpp"), "-o", str(binary)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return subprocess.run([str(binary)], capture_output=True, text=True, timeout=60, check=False)


def test_both_ways_give_the_same_bits(tmp_path):
    """F16C and integer conversion agree; without F16C the integer conversion is compared with itself."""
    done = differing(OPS / "csrc", tmp_path)
    assert (done.returncode, done.stdout) == (0, "0 numbers differ\n"), done.stderr[-3000:]


@pytest.mark.skipif(
    "f16c" not in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""),
    reason="needs a processor with F16C",
)
@pytest.mark.parametrize(("what", "text", "broken"), BUGS, ids=[bug[0] for bug in BUGS])
def test_a_planted_bug_is_caught(tmp_path, what, text, broken):
    shutil.copytree(OPS / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc" / "cpu" / "half_blocks.h"
    sound = header.read_text()
    assert text in sound, "the conversion has changed: plant the bug anew"
    header.write_text(sound.replace(text, broken, 1))
    assert differing(tmp_path / "csrc", tmp_path).returncode != 0, what
