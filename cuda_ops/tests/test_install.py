"""Imports that must fail in words, and the build on first use."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    """A copy of the sources without anything built."""
    return Path(
        shutil.copytree(OPS, to / "cuda_ops", ignore=shutil.ignore_patterns("build", "*.so", "tests"))
    )


def test_a_checkout_that_is_not_built_says_what_to_do(tmp_path):
    done = python(IMPORT, checkout(tmp_path), NEUSCALE_OPS_JIT="0")
    assert done.stdout.startswith("ImportError neuscale_ops is not built")
    assert "make ops" in done.stdout


def test_a_library_that_does_not_fit_says_so(tmp_path):
    package = checkout(tmp_path) / "neuscale_ops"
    (package / "neuscale_ops_cpu.so").write_bytes(b"no library")
    done = python(IMPORT, package.parent, NEUSCALE_OPS_JIT="0")
    assert done.stdout.startswith("ImportError")
    assert "does not load with torch" in done.stdout


def test_built_on_first_use_by_one_process(tmp_path):
    """Eight processes of a node start at once: one compiles, the others wait and use it."""
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
