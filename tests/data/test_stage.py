"""Staging leaves one intact copy on the node's disk, or nothing that could be taken for one."""

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import ListeningProgress, TreeBuilder
from neuscale.data.formats.meta import SPLITS
from neuscale.data.formats.packed import PackedDataset, array_files
from neuscale.data.prepare import prepare
from neuscale.data.staging import stage, staged_for_training
from neuscale.errors import DataError, UsageError

STAGE = """
import sys
from pathlib import Path
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.staging import stage
from neuscale.progress import Silent

class Told(Silent):
    def message(self, text):
        print(text, flush=True)

print("ready", flush=True)
data = stage(PackedDataset.open(Path(sys.argv[1])), Path(sys.argv[2]), Told())
print(data.folder, flush=True)
"""


@pytest.fixture(scope="module")
def packed(build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Data set of 9 MB, so that a copy takes a moment."""
    folder = tmp_path_factory.mktemp("shared")
    tree = build_image_tree(folder / "tree", train=10, val=2, size=(8, 8))
    small = prepare("image_folder", root=folder, source=tree, save_as="pets")
    many = np.tile(np.asarray(small.images("train")), (1500, 1, 1, 1))
    np.save(small.folder / "train_images.npy", many)
    np.save(small.folder / "train_labels.npy", np.tile(small.labels("train"), 1500))
    return _with_new_checksums(small)


def _with_new_checksums(data: PackedDataset) -> PackedDataset:
    import dataclasses
    import hashlib

    sums = {
        file: hashlib.sha256((data.folder / file).read_bytes()).hexdigest() for file in array_files(SPLITS)
    }
    meta = dataclasses.replace(
        data.meta, checksums=sums, counts={"train": 30 * 1500, "val": data.meta.counts["val"]}
    )
    (data.folder / "meta.json").write_text(meta.dumps())
    return PackedDataset.open(data.folder)


def same(one: PackedDataset, other: PackedDataset) -> bool:
    return one.meta == other.meta and all(
        (one.folder / file).read_bytes() == (other.folder / file).read_bytes() for file in array_files(SPLITS)
    )


def test_the_copy_is_the_data(packed: PackedDataset, tmp_path: Path) -> None:
    copy = stage(packed, tmp_path / "node")
    assert tmp_path in copy.folder.parents
    assert same(copy, packed)


def test_tmpdir_is_where_it_goes_without_a_folder(
    packed: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert tmp_path in stage(packed).folder.parents
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(UsageError, match="TMPDIR is not set"):
        stage(packed)


def test_an_intact_copy_is_left_alone_and_a_damaged_one_made_anew(
    packed: PackedDataset, tmp_path: Path
) -> None:
    copy = stage(packed, tmp_path)
    file = copy.folder / "train_images.npy"
    before = file.stat().st_mtime_ns
    stage(packed, tmp_path)
    assert file.stat().st_mtime_ns == before
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert same(stage(packed, tmp_path), packed)


def test_damaged_data_is_not_staged(packed: PackedDataset, tmp_path: Path) -> None:
    broken = tmp_path / "shared" / "pets"
    shutil.copytree(packed.folder, broken)
    content = bytearray((broken / "val_images.npy").read_bytes())
    content[-1] ^= 1
    (broken / "val_images.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"val_images\.npy"):
        stage(PackedDataset.open(broken), tmp_path / "node")
    assert not [path for path in (tmp_path / "node").rglob("*") if path.suffix == ".npy"]


def test_of_four_processes_one_copies_and_the_others_wait(packed: PackedDataset, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STAGE, str(packed.folder), str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    folders = {output.splitlines()[-1] for output in outputs}
    assert len(folders) == 1
    assert same(PackedDataset.open(Path(folders.pop())), packed)


def test_killed_at_any_moment_it_leaves_no_copy_that_could_be_read(
    packed: PackedDataset, tmp_path: Path
) -> None:
    moments = random.Random(0)
    folder = tmp_path / "neuscale" / "packed" / "pets"
    interrupted = 0
    for _ in range(30):
        shutil.rmtree(folder, ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-c", STAGE, str(packed.folder), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.06))
        process.kill()
        process.communicate()
        if folder.exists():
            assert same(PackedDataset.open(folder), packed)
        else:
            interrupted += 1
    assert interrupted > 3
    assert same(stage(packed, tmp_path), packed)
    assert {path.name for path in folder.parent.iterdir()} == {"pets", ".pets.lock"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """File system of 2 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_copied(
    packed: PackedDataset, small_disk: Path, listening: ListeningProgress
) -> None:
    with pytest.raises(DataError, match=r"takes \d+ MB with a margin, but only"):
        stage(packed, small_disk, listening)
    assert not [task for task in listening.tasks if task.title.startswith("staging")]
    assert not [path for path in small_disk.rglob("*") if path.suffix == ".npy"]


def test_in_a_batch_job_a_full_node_means_a_warning_and_the_shared_copy(
    packed: PackedDataset, small_disk: Path, listening: ListeningProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert staged_for_training(packed, "auto", listening) is packed
    assert str(packed.folder) in listening.warnings[0]


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID"])
def test_auto_stages_in_a_batch_job_only(
    packed: PackedDataset, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch,
    listening: ListeningProgress,
) -> None:  # fmt: skip
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert staged_for_training(packed, "auto", listening) is packed
    monkeypatch.setenv(variable, "1")
    assert tmp_path in staged_for_training(packed, "auto", listening).folder.parents
    assert staged_for_training(packed, "none", listening) is packed
    elsewhere = staged_for_training(packed, str(tmp_path / "x"), listening)
    assert tmp_path / "x" in elsewhere.folder.parents
    assert os.environ[variable] == "1"
