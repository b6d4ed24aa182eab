"""Build on first use: its cache folder, what triggers a new build, and CMake's options, without a build."""

import os
import platform
import re
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch

from neuscale_ops import fakes, jit


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Fake checkout of three files, and a cache folder beside it."""
    folder = tmp_path / "cuda_ops"
    for name in ("CMakeLists.txt", "cmake/Cpu.cmake", "csrc/cpu/one.cpp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    monkeypatch.setattr(jit, "SOURCES", folder)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("NEUSCALE_OPS_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def builds(monkeypatch):
    """List of builds, recorded by a fake `_build` that leaves the files of a real one."""
    done = []

    def build(folder, architectures):
        done.append((folder, architectures))
        folder.mkdir()
        (folder / jit.DONE).touch()

    monkeypatch.setattr(jit, "_build", build)
    return done


def test_the_same_sources_are_built_once_and_others_again(sources, builds, tmp_path, monkeypatch):
    first = jit.built_folder()
    assert first.parent == tmp_path / "cache"
    kind = f"{platform.system().lower()}-{platform.machine()}"
    assert first.name == f"{jit.source_hash()[:16]}-{kind}-torch{torch.__version__}-cpu"
    assert jit.built_folder() == first
    assert builds == [(first, [])]
    (sources / "csrc" / "cpu" / "one.cpp").write_text("changed")
    second = jit.built_folder()
    assert second != first
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert jit.built_folder().name.endswith("-torch9.9.9-cpu")
    monkeypatch.setattr(jit, "card_architectures", lambda: ["80-real", "90-real"])
    assert jit.built_folder().name.endswith("-torch9.9.9-80-real_90-real")
    assert [architectures for _, architectures in builds] == [[], [], [], ["80-real", "90-real"]]


def test_machines_of_two_kinds_share_a_cache(sources, builds, monkeypatch):
    first = jit.built_folder()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert jit.built_folder() != first
    assert len(builds) == 2


def test_what_a_killed_build_left_behind_is_removed(sources, builds, tmp_path):
    folder = jit.built_folder()
    shutil.rmtree(folder)
    mine, others = (tmp_path / "cache" / f"building-{name}-x1" for name in (folder.name, "another"))
    for left in (mine, others):
        (left / "build").mkdir(parents=True)
    assert jit.built_folder() == folder
    assert not mine.exists()
    assert others.exists(), "it may be under way, under a lock of its own"


def give_away(path):
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, 54321, 54321)


def make_link(path):
    moved = path.rename(path.with_name("moved"))
    path.symlink_to(moved)


def open_to_group(path):
    path.chmod(path.stat().st_mode | stat.S_IWGRP)


@pytest.mark.parametrize("what", ["cache", "folder", "library"])
@pytest.mark.parametrize("how", [give_away, make_link, open_to_group])
def test_nothing_is_loaded_that_others_could_have_written(sources, builds, what, how):
    folder = jit.built_folder()
    path = {"cache": folder.parent, "folder": folder, "library": folder / jit.DONE}[what]
    how(path)
    if what == "cache" and how is make_link:
        assert jit.built_folder() == folder, "a user's own link to a larger disk"
        return
    with pytest.raises(ImportError, match=re.escape(f"{path}: others own it, or may write")):
        jit.built_folder()


def test_nothing_is_built_where_others_could_change_it(sources, builds, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    with pytest.raises(ImportError, match="Set NEUSCALE_OPS_CACHE to a folder of your own"):
        jit.built_folder()
    assert builds == []


def test_the_cache_is_closed_to_others(sources, builds, tmp_path):
    jit.built_folder()
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_what_was_interrupted_is_built_again(sources, builds):
    folder = jit.built_folder()
    shutil.rmtree(folder)
    assert jit.built_folder() == folder
    assert len(builds) == 2


def test_every_source_counts_by_its_name_and_its_content(sources):
    seen = {jit.source_hash()}
    for path in [path for path in sources.rglob("*") if path.is_file()]:
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        seen.add(jit.source_hash())
        path.write_bytes(before)
    (sources / "csrc" / "cpu" / "one.cpp").rename(sources / "csrc" / "cpu" / "two.cpp")
    seen.add(jit.source_hash())
    (sources / "csrc" / "cpu" / "new.h").touch()
    seen.add(jit.source_hash())
    assert len(seen) == 6
    (sources / "README.md").write_text("not built from")
    assert jit.source_hash() in seen


def test_the_cards_of_this_process_each_once_in_order(monkeypatch):
    cards = [(9, 0), (8, 0), (9, 0), (10, 0)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(cards))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda i: cards[i])
    assert jit.card_architectures() == ["80-real", "90-real", "100-real"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert jit.card_architectures() == []


def test_an_installed_package_and_a_cache_that_cannot_be_are_messages(sources, builds, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEUSCALE_OPS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ImportError, match=f"{tmp_path}/file: .*Set NEUSCALE_OPS_CACHE"):
        jit.built_folder()
    (sources / "CMakeLists.txt").unlink()
    with pytest.raises(ImportError, match="put the checkout's cuda_ops folder on PYTHONPATH"):
        jit.built_folder()
    assert builds == []


@pytest.mark.parametrize(("architectures", "cuda"), [([], "OFF"), (["80-real", "90-real"], "ON")])
def test_cmake_is_told_of_the_cards_and_the_result_is_renamed(
    sources, tmp_path, monkeypatch, architectures, cuda
):
    commands = []

    def run(command):
        commands.append(command)
        if "--install" in command:
            out = Path(command[-1]).parent / "out" / "neuscale_ops"
            out.mkdir(parents=True)
            (out / jit.DONE).touch()

    monkeypatch.setattr(jit, "_run", run)
    monkeypatch.setattr(jit, "_tool", lambda name: None if name == "make" else f"/bin/{name}")
    jit._build(tmp_path / "built", architectures)
    configure, build, _install = commands
    assert configure[:3] == ["/bin/cmake", "-S", str(sources)]
    for option in (
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DNEUSCALE_OPS_CUDA={cuda}",
        f"-DNEUSCALE_OPS_ARCHITECTURES={';'.join(architectures)}",
        "-GNinja",
    ):
        assert option in configure
    assert build[1] == "--build"
    assert (tmp_path / "built" / jit.DONE).exists()
    assert not list(tmp_path.glob("building-*"))


@pytest.mark.parametrize(("there", "says"), [([], "needs CMake"), (["cmake"], "needs Ninja or make")])
def test_a_missing_tool_is_named(tmp_path, monkeypatch, there, says):
    monkeypatch.setattr(jit, "_tool", lambda name: f"/bin/{name}" if name in there else None)
    with pytest.raises(ImportError, match=says):
        jit._build(tmp_path / "built", [])


def test_a_failed_build_shows_the_compilers_last_words():
    script = "import sys; [print('line', i) for i in range(50)]; sys.exit(3)"
    with pytest.raises(ImportError, match="could not be built") as caught:
        jit._run([sys.executable, "-c", script])
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (31, "line 49")


def test_the_ops_of_the_gpu_have_their_shapes_without_data():
    """Fake kernels return the right shapes and dtypes; GPU ops have no CPU kernel to compare with."""
    x, weight = torch.empty(5, 8, dtype=torch.float16), torch.empty(16, 8, dtype=torch.float16)
    y, pre = fakes.linear_gelu(x, weight, torch.empty(16))
    assert y.shape == pre.shape == (5, 16)
    assert y.dtype == pre.dtype == torch.float16
    grad = torch.empty(5, 3, dtype=torch.float16)
    dpre, dbias = fakes.linear_gelu_backward(grad, torch.empty(3, 16), pre)
    assert (dpre.shape, dbias.shape, dpre.dtype) == ((5, 16), (16,), torch.float16)
    images, table = torch.empty(9, 3, 4, 6, dtype=torch.uint8), torch.empty(3, 256, dtype=torch.bfloat16)
    five = torch.zeros(5, dtype=torch.int64)
    out = fakes.crop_flip_normalize(images, five, five, five, five.bool(), table, 1)
    assert (out.shape, out.dtype) == ((5, 3, 4, 6), torch.bfloat16)
    # the bias gradient has the bias's dtype, or x's dtype without a bias
    bias = torch.empty(8, dtype=torch.float32)
    assert fakes.bias_gelu_backward(x, x, bias, 0)[1].dtype == torch.float32
    assert fakes.bias_gelu_backward(x, x, None, 0)[1].dtype == torch.float16
