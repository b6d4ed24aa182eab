"""CUDA kernels, compiled as C++, pass under sanitizers, and fail with a planted bug.

Each planted bug is a change to a copy of a kernel's source. A test that passes on a broken kernel
would prove nothing about the correct one.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

OPS = Path(__file__).parents[1]
TESTS = OPS / "tests"
ADDRESS, THREAD = "address,undefined", "thread"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ with sanitizers")

GELU, CROP = "bias_gelu_kernels.cuh", "crop_kernels.cuh"

# (what is broken, test program, sanitizer, file, text, its replacement)
BUGS = [
    ("no barrier before the sums are read", "gelu", THREAD, GELU, "  __syncthreads();\n  if (column", "  if (column"),
    ("threads beyond the last column write", "gelu", ADDRESS, GELU, "  if (column >= columns) return;\n  float b", "  float b"),
    ("the second row in flight is not checked", "gelu", ADDRESS, GELU, "if (r + k * step >= rows) break;", ""),
    ("a row is left out by the backward", "gelu", ADDRESS, GELU, "* TY + threadIdx.y; r < rows;\n         r +=", "* TY + threadIdx.y + 1; r < rows;\n         r +="),
    ("shared memory is a column short", "gelu", ADDRESS, GELU, "shared[TY][TX * N];", "shared[TY][TX * N - 1];"),
    ("the wrong stride between blocks' rows", "gelu", ADDRESS, GELU, "step = static_cast<int64_t>(gridDim.y) * TY", "step = static_cast<int64_t>(gridDim.y + 1) * TY"),
    ("a part of the sums is left out", "gelu", ADDRESS, GELU, "for (int p = threadIdx.y; p < parts; p += TY) sum", "for (int p = threadIdx.y; p < parts - 1; p += TY) sum"),
    ("the table is read before it is there", "crop", THREAD, CROP, "  __syncthreads();\n", ""),
    ("an index out of range is followed", "crop", ADDRESS, CROP, "image >= 0 && image < a.images_count", "image >= 0"),
    ("the crop may leave the image's rows", "crop", ADDRESS, CROP, "known && from >= 0 && from < height", "known"),
    ("the mirror image is off by one", "crop", ADDRESS, CROP, "width - 1 - (x + k)", "width - (x + k)"),
]  # fmt: skip


def build(program: str, sanitizer: str, sources: Path, to: Path) -> Path:
    binary = to / program
    options = ["-std=c++20", "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    files = [str(TESTS / f"emulated_{program}.cpp")]
    include = [f"-I{sources}", f"-I{TESTS}"]
    command = ["g++", *options, *include, *files, "-o", str(binary), "-pthread", "-Wno-unknown-pragmas"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return binary


def run(binary: Path) -> subprocess.CompletedProcess[str]:
    # A barrier that not every thread reaches blocks forever: the timeout is a failure too.
    try:
        return subprocess.run([str(binary)], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([str(binary)], 1, "", "did not end")


@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD])
@pytest.mark.parametrize("program", ["gelu", "crop"])
def test_kernels_are_right_and_clean(tmp_path, program, sanitizer):
    done = run(build(program, sanitizer, OPS / "csrc", tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.startswith("0 ")


@pytest.mark.parametrize(
    ("what", "program", "sanitizer", "file", "text", "broken"), BUGS, ids=[b[0] for b in BUGS]
)
def test_a_planted_bug_is_caught(tmp_path, what, program, sanitizer, file, text, broken):
    sources = tmp_path / "csrc"
    shutil.copytree(OPS / "csrc", sources)
    kernel = sources / "cuda" / file
    sound = kernel.read_text()
    assert text in sound, "the kernel has changed: plant the bug anew"
    kernel.write_text(sound.replace(text, broken, 1))
    assert run(build(program, sanitizer, sources, tmp_path)).returncode != 0, what


def test_gemms_hand_cublaslt_what_its_documentation_asks(tmp_path):
    """Transposes, leading dimensions and pointers match cuBLASLt's documentation; GPUs report no error."""
    headers = cublas_headers()
    if not headers:
        pytest.skip("needs cublasLt.h and a CUDA toolkit's headers")
    binary = tmp_path / "gemm"
    sources = [TESTS / "emulated_gemm.cpp", TESTS / "fake_cublaslt.cpp", OPS / "csrc/cuda/epilogue_gemm.cpp"]
    options = [
        "-std=c++20",
        "-O1",
        "-g",
        f"-fsanitize={ADDRESS}",
        "-fno-sanitize-recover=all",
        f"-I{OPS / 'csrc'}",
    ]
    subprocess.run(["g++", *options, *headers, *map(str, sources), "-o", str(binary)], check=True)
    done = run(binary)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def cublas_headers() -> list[str]:
    """Compiler options for the CUDA toolkit's headers, then torch's cuBLAS; empty if headers are missing."""
    import torch

    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    wheel = Path(torch.__file__).parents[1] / "nvidia/cu13/include"
    if not (toolkit / "cuda_runtime_api.h").is_file():
        return []
    if not any((folder / "cublasLt.h").is_file() for folder in (toolkit, wheel)):
        return []
    return [f"-I{toolkit}", "-isystem", str(wheel)]
