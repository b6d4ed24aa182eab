"""Symbols, registers and memory accesses of the compiled libraries, read from the files."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from neuscale_ops import build_info

TORCH_SYMBOLS = Path(__file__).with_name("torch_2_11_symbols.txt")
REGISTERS = 64  # four blocks of 256 threads with so many registers fit on a multiprocessor


def library(name: str) -> Path:
    built = build_info()[name]
    if built is None:
        pytest.skip(f"the {name} library is not built or not loaded here")
    return Path(built["path"])


def undefined_symbols(path: Path) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("needs nm of binutils")
    done = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_only_symbols_of_torch_2_11(name):
    """The libraries use only symbols of torch 2.11, so the wheel loads with the oldest supported torch."""
    used = {s for s in undefined_symbols(library(name)) if re.match("(aoti_)?torch_", s)}
    assert used
    assert used <= set(TORCH_SYMBOLS.read_text().split())


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_no_python_and_no_cpp_symbols_of_torch(name):
    """The libraries use no symbols that tie the wheel to one Python (Py…) or one torch (its C++ symbols)."""
    used = undefined_symbols(library(name))
    assert not [s for s in used if re.match("_?Py[A-Z_]", s)]
    assert not [s for s in used if re.match(r"_ZNK?(2at|3c10|5torch)", s)]


def tool(name: str) -> str:
    """Path of cuobjdump or nvdisasm: on PATH, in the CUDA toolkit, or in the packages that torch installs."""
    import torch

    places = [
        os.environ.get("PATH", ""),
        "/usr/local/cuda/bin",
        str(Path(torch.__file__).parents[1] / "nvidia/cu13/bin"),
        str(Path(torch.__file__).parents[1] / "triton/backends/nvidia/bin"),
    ]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"needs {name} (package nvidia-cuda-{name})")
    return found


def cuobjdump(*options: str) -> str:
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    command = [tool("cuobjdump"), *options, str(library("cuda"))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    demangled = subprocess.run(["c++filt"], input=done.stdout, capture_output=True, text=True, check=True)
    return demangled.stdout


def test_kernels_spill_nothing_and_leave_room():
    """Kernels spill no registers, which would cost memory traffic, and use at most REGISTERS of them."""
    words = cuobjdump("-res-usage")
    usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", words)
    assert len(usage) >= 25
    assert {(stack, local) for _, stack, local in usage} == {("0", "0")}
    assert max(int(registers) for registers, _, _ in usage) <= REGISTERS


def test_vector_kernels_move_16_bytes_an_access():
    """Vector kernels access memory in 16 bytes; narrower accesses cannot saturate the memory bus."""
    bodies = re.split(r"Function : ", cuobjdump("-sass"))[1:]
    vectors = 0
    for body in bodies:
        name = body.partition("\n")[0]
        loads, stores = (set(re.findall(rf"{op}\.E\.(\w+)", body)) for op in ("LDG", "STG"))
        if re.search(r"bias_gelu_(forward|backward)<.*, [48], 32, 8>", name):
            vectors += 1
            assert "128" in loads, name
            assert "128" in stores, name
        elif re.search(r"crop_flip_normalize<unsigned \w+, [48], 256>", name):
            vectors += 1
            assert stores == {"128"}, name
        assert not re.search(r"\b(LDL|STL)\b", body), name
    assert vectors >= 22
