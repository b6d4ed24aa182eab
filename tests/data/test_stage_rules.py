"""Staging rules: when data is staged and where to, and that every byte of the right data is copied."""

import os
import shutil
import stat
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import ListeningProgress, TreeBuilder
from neuscale.data import staging as module
from neuscale.data.formats.meta import META_FILE, SPLITS
from neuscale.data.formats.packed import PackedDataset, array_files
from neuscale.data.prepare import prepare
from neuscale.data.staging import stage, staged_for_training
from neuscale.errors import DataError, UserError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def pair(
    build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PackedDataset, PackedDataset]:
    """Two data sets with the same name and shape, as before and after a change of the images."""
    made = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("shared")
        tree = build_image_tree(folder / "tree", train=9, val=4, size=(11, 11), seed=seed)
        made.append(prepare("image_folder", root=folder, source=tree, save_as="pets"))
    return made[0], made[1]


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    return tmp_path / "node"


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(1 << 40, 0, count))


@pytest.mark.parametrize("piece", [64, 999, 1000, 1 << 20])
def test_every_piece_is_copied_to_its_own_place(
    piece: int,
    pair: tuple[PackedDataset, PackedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listening: ListeningProgress,
) -> None:
    data = pair[0]
    monkeypatch.setattr(module, "_CHUNK", piece)
    copy = stage(data, tmp_path, listening)
    assert copy.folder == tmp_path / "neuscale" / "packed" / "pets"
    assert sorted(path.name for path in copy.folder.iterdir()) == sorted((*array_files(SPLITS), META_FILE))
    for file in (*array_files(SPLITS), META_FILE):
        assert (copy.folder / file).read_bytes() == (data.folder / file).read_bytes()
    [task] = [task for task in listening.tasks if task.title == "staging pets"]
    size = sum((data.folder / file).stat().st_size for file in array_files(SPLITS))
    assert (task.done, task.total, task.unit) == (size, size, "B")


def test_an_intact_copy_of_other_data_of_this_name_is_replaced(
    pair: tuple[PackedDataset, PackedDataset], tmp_path: Path
) -> None:
    """A node that keeps its disk between jobs may hold the images of the previous job."""
    before, after = pair
    stage(before, tmp_path)
    copy = stage(after, tmp_path)
    assert copy.meta.fingerprint == after.meta.fingerprint != before.meta.fingerprint
    assert np.array_equal(copy.images("train"), after.images("train"))


def test_data_that_lie_there_already_are_not_copied_onto_themselves(
    pair: tuple[PackedDataset, PackedDataset], tmp_path: Path
) -> None:
    copy = stage(pair[0], tmp_path)
    assert stage(copy, tmp_path) is copy


@pytest.mark.parametrize("spare", [0, -1])
def test_the_disk_needs_room_for_the_files_and_64_mib(
    spare: int,
    pair: tuple[PackedDataset, PackedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = (
        sum((pair[0].folder / file).stat().st_size for file in (*array_files(SPLITS), META_FILE))
        + 64 * 1024 * 1024
    )
    free(monkeypatch, needed + spare)
    if not spare:
        assert stage(pair[0], tmp_path).verify() == []
        return
    with pytest.raises(DataError, match="pets takes 67 MB with a margin, but only 67 MB are free"):
        stage(pair[0], tmp_path)


def test_auto_takes_the_shared_copy_where_the_node_is_full_and_a_folder_that_was_asked_for_does_not(
    pair: tuple[PackedDataset, PackedDataset],
    in_a_job: Path,
    monkeypatch: pytest.MonkeyPatch,
    listening: ListeningProgress,
) -> None:
    free(monkeypatch, 5_000_000)
    assert staged_for_training(pair[0], "auto", listening) is pair[0]
    [warning] = listening.warnings
    assert f"not staged, reading {pair[0].folder} instead" in warning and "only 5 MB are free" in warning
    with pytest.raises(DataError, match="only 5 MB are free"):
        staged_for_training(pair[0], str(in_a_job), listening)


def test_auto_without_a_folder_of_the_node_stages_nowhere(
    pair: tuple[PackedDataset, PackedDataset],
    in_a_job: Path,
    monkeypatch: pytest.MonkeyPatch,
    listening: ListeningProgress,
) -> None:
    for value in (None, ""):
        monkeypatch.setenv("TMPDIR", value) if value is not None else monkeypatch.delenv("TMPDIR")
        assert staged_for_training(pair[0], "auto", listening) is pair[0]
    assert listening.warnings == [] and not in_a_job.exists()


def test_a_folder_is_staged_to_outside_of_jobs_and_may_begin_with_the_home(
    pair: tuple[PackedDataset, PackedDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listening: ListeningProgress,
) -> None:
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    copy = staged_for_training(pair[0], "~/fast", listening)
    assert copy.folder == tmp_path / "fast" / "neuscale" / "packed" / "pets"
    shutil.rmtree(tmp_path / "fast")


def open_to_others(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def of_another_user(folder: Path) -> None:
    folder.mkdir(parents=True)
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(folder, 54321, 54321)


def a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(parents=True)
    folder.symlink_to(folder.parent / "elsewhere")


FOREIGN = [open_to_others, of_another_user, a_link]


@pytest.mark.parametrize("make_foreign", FOREIGN)
def test_a_folder_that_others_could_change_is_passed_over(
    make_foreign: Callable[[Path], None], pair: tuple[PackedDataset, PackedDataset], tmp_path: Path
) -> None:
    """A copy is verified once and then read for hours, so nobody else may be able to change it."""
    make_foreign(tmp_path / "neuscale")
    copy = stage(pair[0], tmp_path)
    own = tmp_path / f"neuscale-{os.getuid()}"
    assert copy.folder == own / "packed" / "pets"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert not any((tmp_path / "neuscale").iterdir())
    assert stage(copy, tmp_path) is copy


@pytest.mark.parametrize("make_foreign", FOREIGN)
def test_without_a_folder_of_its_own_nothing_is_staged(
    make_foreign: Callable[[Path], None],
    pair: tuple[PackedDataset, PackedDataset],
    in_a_job: Path,
    listening: ListeningProgress,
) -> None:
    make_foreign(in_a_job / f"neuscale-{os.getuid()}")
    (in_a_job / "neuscale").symlink_to(in_a_job)
    with pytest.raises(UserError, match=r"(?s)others own it .*Stage to a folder of your own"):
        stage(pair[0])
    assert staged_for_training(pair[0], "auto", listening) is pair[0]
    assert "not staged, reading" in listening.warnings[0]
