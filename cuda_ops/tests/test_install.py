"""Error messages of failed imports, and the build on first use."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import neuscale_ops

OPS = Path(__file__).parents[1]


def python(code: str, *path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env, check=False
    )


IMPORT = """
try:
    import neuscale_ops
except ImportError as error:
    print(type(error).__name__, error)
"""


def checkout(to: Path) -> Path:
    """Copy of the sources without build outputs."""
    return Path(
        shutil.copytree(OPS, to / "cuda_ops", ignore=shutil.ignore_patterns("build", "*.so", "tests"))
    )


def test_a_checkout_that_is_not_built_says_what_to_do(tmp_path):
    done = python(IMPORT, checkout(tmp_path), NEUSCALE_OPS_JIT="0")
    assert done.stdout.startswith("ImportError neuscale_ops is not built")
    assert "make ops" in done.stdout


def elf(machine: int) -> bytes:
    """Start of a 64-bit little-endian ELF library for the given machine number."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little") + machine.to_bytes(2, "little")
    return head + bytes(44)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no library", "is damaged, or of another system than Linux"),
        (b"", "is damaged, or of another system than Linux"),
        (elf(183 if platform.machine() == "x86_64" else 62), "and this machine is"),
        (elf({"x86_64": 62, "aarch64": 183}.get(platform.machine(), 62)), "does not load with torch"),
    ],
)
def test_a_library_that_does_not_fit_says_why(content, words, tmp_path):
    package = checkout(tmp_path) / "neuscale_ops"
    (package / "neuscale_ops_cpu.so").write_bytes(content)
    done = python(IMPORT, package.parent, NEUSCALE_OPS_JIT="0")
    assert done.stdout.startswith("ImportError")
    assert words in done.stdout and "make ops" in done.stdout


def test_a_file_system_without_programs_is_named(tmp_path):
    """The error names a noexec mount, which /tmp and the home folders are on some clusters."""
    installed = Path(neuscale_ops.__file__).parent / "neuscale_ops_cpu.so"
    folder = tmp_path / "noexec"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        package = checkout(folder) / "neuscale_ops"
        shutil.copy(installed, package)
        done = python(IMPORT, package.parent, NEUSCALE_OPS_JIT="0")
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert "is mounted noexec" in done.stdout and "NEUSCALE_OPS_CACHE" in done.stdout


def test_no_message_has_a_path_of_the_machine_that_built_it():
    for name in ("neuscale_ops_cpu.so", "neuscale_ops_cuda.so"):
        library = Path(neuscale_ops.__file__).parent / name
        if library.is_file():
            found = re.findall(rb"[\x20-\x7e]*/[\x20-\x7e]*\.(?:cpp|cu|cuh|h)\b", library.read_bytes())
            assert found, "failed checks name their place"
            assert not [path for path in found if path.startswith(b"/")]


def test_built_on_first_use_by_one_process(tmp_path):
    """Of three processes started at once, one compiles; the others wait and use its build."""
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    sources = checkout(tmp_path)
    code = (
        "import json, torch, neuscale_ops;"
        "neuscale_ops.bias_gelu(torch.ones(2, 3), torch.ones(3));"
        "print(json.dumps(neuscale_ops.build_info()))"
    )
    env = os.environ | {
        "PYTHONPATH": str(sources),
        "NEUSCALE_OPS_JIT": "1",
        "NEUSCALE_OPS_CACHE": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        for _ in range(3)
    ]
    ended = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    assert sum("building" in err for _, err in ended) == 1
    infos = [json.loads(out) for out, _ in ended]
    assert infos[0] == infos[1] == infos[2]
    assert infos[0]["source"] == "jit"
    assert Path(infos[0]["cpu"]["path"]).is_relative_to(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("building-*"))
