"""The CPU library on other machines: cross-compiled for aarch64, its values under qemu; clang's reading.

Neither a processor of ARM nor macOS is needed, and neither has run this library.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gelu_reference import assert_close, derivative_bounds, reference_derivative, reference_gelu
from test_bias_gelu_values import DTYPES, FORMS, samples

OPS = Path(__file__).parents[1]
SOURCES = [OPS / "csrc/schema.cpp", *sorted((OPS / "csrc/cpu").glob("*.cpp"))]
CROSS = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
CLANG = shutil.which("clang++")
# The options of Cpu.cmake and Torch.cmake.
OPTIONS = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
OPTIONS += ["-fvisibility=hidden", "-fvisibility-inlines-hidden", f"-fmacro-prefix-map={OPS}=neuscale_ops"]
TORCH = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
TORCH += ["-isystem", str(Path(torch.__file__).parent / "include")]

cross = pytest.mark.skipif(CROSS is None, reason="needs aarch64-linux-gnu-g++")
emulated = pytest.mark.skipif(QEMU is None, reason="needs qemu-user")
with_clang = pytest.mark.skipif(CLANG is None, reason="needs clang++")


@cross
def test_cmake_builds_the_library_for_aarch64(tmp_path):
    """A stub stands for that machine's libtorch_cpu, which is looked up when the library is loaded."""
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "empty.cpp").touch()
    library = ["-shared", str(stub / "empty.cpp"), "-o", str(stub / "libtorch_cpu.so")]
    subprocess.run([CROSS, *library], check=True)
    cmake = Path(sys.executable).parent / "cmake"
    if not cmake.exists():
        pytest.skip("needs cmake")
    build = tmp_path / "build"
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": CROSS,
        "CMAKE_MODULE_LINKER_FLAGS": f"-L{stub}",
        "CMAKE_BUILD_TYPE": "Release",
        "NEUSCALE_OPS_CUDA": "OFF",
        "Python_EXECUTABLE": sys.executable,
    }
    words = [f"-D{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "CMAKE_GENERATOR": "Ninja" if shutil.which("ninja") else "Unix Makefiles"}
    for command in ([cmake, "-S", OPS, "-B", build, *words], [cmake, "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = build / "neuscale_ops_cpu.so"
    (machine,) = struct.unpack_from("<H", found.read_bytes(), 18)
    assert machine == 183, "not EM_AARCH64"
    disassembled = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", str(found)], capture_output=True, text=True, check=True
    ).stdout
    assert len(re.findall(r"\tfmla\s+v\d+\.4s", disassembled)) > 100, "the loops are not vectorised"
    for conversion in (r"\tfcvtl\s+v\d+\.4s", r"\tfcvtn\s+v\d+\.4h"):
        assert re.search(conversion, disassembled), "float16 is converted one by one"


def rows_program(compiler: str, to: Path, *options: str, sources: Path = OPS / "csrc") -> Path:
    binary = to / "gelu_rows"
    files = [str(OPS / "tests/gelu_rows.cpp"), str(sources / "cpu/gelu_rows.cpp")]
    subprocess.run([compiler, *OPTIONS, *options, f"-I{sources}", *files, "-o", str(binary)], check=True)
    return binary


@pytest.fixture(scope="module")
def aarch64_rows(tmp_path_factory):
    return rows_program(CROSS, tmp_path_factory.mktemp("aarch64"), "-static")


@cross
@emulated
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_on_aarch64_are_float64_rounded(aarch64_rows, dtype, approximate):
    """Within the tolerances of this machine's library, in an odd number of columns."""
    x = samples(dtype, 1).T.contiguous()
    columns = x.shape[1]
    grad = torch.linspace(-2, 2, columns).to(dtype)[None]
    x, grad = torch.cat([x, x.flip(1)]), torch.cat([grad, grad])
    torch.manual_seed(2)
    bias = torch.randn(columns)
    raw = b"".join(value.view(torch.uint8).numpy().tobytes() for value in (x, grad, bias))
    name = str(dtype).removeprefix("torch.")
    done = subprocess.run(
        [QEMU, str(aarch64_rows), name, approximate, "2", str(columns)],
        input=raw, capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    size = x.numel() * x.element_size()
    y, dx = (
        torch.frombuffer(bytearray(part), dtype=dtype).view(2, columns)
        for part in (done.stdout[:size], done.stdout[size : 2 * size])
    )
    sum_of_dx = torch.frombuffer(bytearray(done.stdout[2 * size :]), dtype=torch.float32)
    u = (x.float() + bias).double()
    # float16's arguments reach 1e19 in float32, as on this machine: beyond its range is infinity.
    assert_close(y, reference_gelu(u, approximate), approximate)
    wanted = grad.double() * reference_derivative(u, approximate)
    assert_close(dx, wanted, **derivative_bounds(dtype, 2.0))
    assert_close(sum_of_dx, wanted.sum(0), scale=derivative_bounds(dtype, 4.0)["scale"], rounding=0.55)


def half_blocks(sources: Path, to: Path) -> int:
    binary = to / "half_blocks"
    options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-static", f"-I{sources}"]
    subprocess.run([CROSS, *options, str(OPS / "tests/half_blocks.cpp"), "-o", str(binary)], check=True)
    return subprocess.run([QEMU, str(binary)], capture_output=True, timeout=120, check=False).returncode


@cross
@emulated
def test_float16_is_converted_as_by_the_integer_code(tmp_path):
    assert half_blocks(OPS / "csrc", tmp_path) == 0


@cross
@emulated
@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("vcvt_f16_f32(vld1q_f32(from + i))", "vcvt_f16_f32(vld1q_f32(from + (i & ~7)))"),
        ("vst1q_f32(to + i, vcvt_f32_f16", "vst1q_f32(to + i, -vcvt_f32_f16"),
    ],
    ids=["the wrong place", "the sign"],
)
def test_a_planted_bug_of_the_conversion_is_caught(tmp_path, text, broken):
    shutil.copytree(OPS / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc/cpu/half_blocks.h"
    sound = header.read_text()
    assert text in sound, "the conversion has changed: plant the bug anew"
    header.write_text(sound.replace(text, broken, 1))
    assert half_blocks(tmp_path / "csrc", tmp_path) != 0


@with_clang
@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-linux-gnu"])
def test_clang_reads_the_sources_without_a_warning(tmp_path, target):
    """Apple's compiler is clang; its own headers are not here."""
    if target == "aarch64-linux-gnu" and CROSS is None:
        pytest.skip("needs the headers of aarch64-linux-gnu-g++")
    # torch's headers are not for -Werror; ours are.
    command = [CLANG, f"--target={target}", *OPTIONS, *TORCH, "-Werror", "-fsyntax-only"]
    for source in SOURCES:
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]


@with_clang
@pytest.mark.parametrize("target", ["arm64-apple-macos14", "x86_64-apple-macos14"])
def test_clang_for_macos_takes_our_options(tmp_path, target):
    """Compiled for macOS without its headers: the option list, and the arithmetic, which needs none."""
    source = tmp_path / "arithmetic.cpp"
    for name, content in {
        "cstdint": "typedef int int32_t; typedef unsigned uint32_t; typedef long long int64_t;",
        "cstring": "#define memcpy __builtin_memcpy",
    }.items():
        (tmp_path / name).write_text(content)
    source.write_text(
        '#include "gelu_math.h"\n'
        "namespace neuscale {\n"
        "float value(float x) { return gelu<Approximate::kNone, Precision::kFloat32>(x); }\n"
        "}\n"
    )
    command = [CLANG, f"--target={target}", *OPTIONS, "-Werror", "-nostdinc", "-nostdinc++"]
    command += [f"-I{tmp_path}", f"-I{OPS / 'csrc'}", "-S", str(source), "-o", str(tmp_path / "out.s")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "__ZN8neuscale5valueEf" in (tmp_path / "out.s").read_text(), "not in Mach-O's naming"
