"""build_info() describes the loaded libraries, so that reports can be compared."""

import hashlib
import json
import runpy
from importlib import metadata
from pathlib import Path

import torch

import neuscale_ops
from neuscale_ops import build_info


def test_the_loaded_libraries_are_named_with_their_sums():
    info = build_info()
    assert list(info) == ["version", "torch_target", "source", "cpu", "cuda"]
    assert info["version"] == neuscale_ops.__version__ == metadata.version("neuscale_ops")
    assert info["torch_target"] == "2.11"
    folder = Path(neuscale_ops.__file__).parent
    path = Path(info["cpu"]["path"])
    assert path.name == "neuscale_ops_cpu.so"
    assert info["cpu"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info["source"] == ("installed" if path.parent == folder else "jit")
    has_cuda = torch.version.cuda is not None and (path.parent / "neuscale_ops_cuda.so").is_file()
    assert (info["cuda"] is not None) == has_cuda
    if info["cuda"] is not None:
        library = Path(info["cuda"]["path"])
        assert library == path.parent / "neuscale_ops_cuda.so"
        assert info["cuda"]["sha256"] == hashlib.sha256(library.read_bytes()).hexdigest()
        assert info["cuda"]["architectures"]


def test_the_command_prints_it(capsys):
    runpy.run_module("neuscale_ops", run_name="__main__")
    assert json.loads(capsys.readouterr().out) == build_info()
