"""Numbers recorded and shown for a data set are recomputed here from its source files."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import ListeningProgress
from neuscale.cli import run
from neuscale.data.formats.meta import SPLITS, PackedMeta
from neuscale.data.formats.packed import PackedDataset, array_files
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_packed import ChannelStatistics
from neuscale.data.prepare import prepare

HEIGHT, WIDTH = 14, 9
# By code point, as Python and torchvision sort: capitals first, b10 before b9.
CLASSES = ["Zoo", "b10", "b9", "cow"]
COUNTS = {"train": {"cow": 5, "b9": 2, "Zoo": 3, "b10": 7}, "val": {"b10": 1, "cow": 4, "Zoo": 2, "b9": 6}}
TOTALS = {"train": 17, "val": 13}


def pixels_of(split: str, name: str, number: int) -> NDArray[np.uint8]:
    """Return pixels, uint8 [H, W, 3]; each channel, class and split has its own mean and spread."""
    random = np.random.default_rng([*split.encode(), *name.encode(), number])
    low = np.array([10, 60, 100]) + 7 * CLASSES.index(name) + (40 if split == "val" else 0)
    return (low + random.integers(0, [20, 60, 100], (HEIGHT, WIDTH, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven") / "uneven"
    for split, classes in COUNTS.items():
        for name, count in classes.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                path = folder / split / name / f"{number}.png"
                Image.fromarray(pixels_of(split, name, number)).save(path)
    return folder


def expected_images(split: str) -> NDArray[np.uint8]:
    """Return the images [N, C, H, W], sorted by class and file."""
    images = [pixels_of(split, name, number) for name in CLASSES for number in range(COUNTS[split][name])]
    return np.stack(images).transpose(0, 3, 1, 2)


def expected_labels(split: str) -> list[int]:
    return [label for label, name in enumerate(CLASSES) for _ in range(COUNTS[split][name])]


@pytest.fixture(scope="module")
def packed(tree: Path) -> PackedDataset:
    return prepare("image_folder", root=tree.parent / "data", source=tree)


def test_packed_images_labels_and_statistics_are_those_of_the_files(packed: PackedDataset) -> None:
    meta = packed.meta
    assert meta.classes == CLASSES and meta.num_classes == 4
    assert meta.counts == TOTALS
    assert (meta.channels, meta.height, meta.width) == (3, HEIGHT, WIDTH)
    for split, total in TOTALS.items():
        assert meta.shape(split) == (total, 3, HEIGHT, WIDTH)
        assert np.array_equal(packed.images(split), expected_images(split))
        assert packed.labels(split).tolist() == expected_labels(split)
        assert packed.class_counts(split) == [COUNTS[split][name] for name in CLASSES]
    values = expected_images("train") / 255  # population standard deviation, of the training images only
    assert meta.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert meta.std == pytest.approx(values.std((0, 2, 3), ddof=0).tolist(), rel=1e-12)


def digest(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"mean": [0.5, 0.5, 0.5]},
        {"std": [0.25, 0.25, 0.25]},
        {"height": 9, "width": 14},
        {"counts": {"train": 1, "val": 1}},
        {"classes": CLASSES[::-1]},
        {"checksums": {}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_training_reads_is_in_the_fingerprint(packed: PackedDataset, changed: Any) -> None:
    other = replace(packed.meta, **changed)
    assert other.fingerprint != packed.meta.fingerprint
    assert not other.is_recorded_as(packed.meta.fingerprint)


def test_checksums_and_fingerprint_are_those_of_the_files_on_disk(packed: PackedDataset) -> None:
    sums = {
        file: hashlib.sha256((packed.folder / file).read_bytes()).hexdigest() for file in array_files(SPLITS)
    }
    assert packed.meta.checksums == sums
    meta = packed.meta
    first = {"checksums": sums, "classes": CLASSES}
    numbers = {"mean": meta.mean, "std": meta.std, "shape": [3, 14, 9], "counts": TOTALS, "size": None}
    assert meta.fingerprint == digest({"version": 2, **first, **numbers})
    assert meta.is_recorded_as(digest(first)), "runs that recorded the first version are understood"
    assert not meta.is_recorded_as(digest({**first, "classes": CLASSES[::-1]}))
    record = json.loads((packed.folder / "meta.json").read_text())
    assert record["fingerprint"] == packed.meta.fingerprint
    assert (record["format_version"], record["counts"], record["height"], record["width"]) == (
        1,
        TOTALS,
        14,
        9,
    )


@pytest.mark.parametrize("size", [None, 6])
def test_listed_files_have_the_numbers_of_the_files(tree: Path, tmp_path: Path, size: int | None) -> None:
    data = list_images("image_folder", root=tmp_path, source=tree, size=size)
    assert data.meta.classes == CLASSES and data.meta.counts == TOTALS
    assert data.meta.source["folder"] == str(tree)
    shown = {}
    for split in COUNTS:
        names = [f"{split}/{name}/{number}.png" for name in CLASSES for number in range(COUNTS[split][name])]
        files = data.files(split)
        assert [file.name for file in files] == names
        assert [file.label for file in files] == data.labels(split).tolist() == expected_labels(split)
        assert data.class_counts(split) == [COUNTS[split][name] for name in CLASSES]
        for file in files:
            content = (tree / file.name).read_bytes()
            assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        images = expected_images(split)
        if size is not None:  # the central square, downscaled
            box = (0, (HEIGHT - WIDTH) / 2, WIDTH, (HEIGHT + WIDTH) / 2)
            originals = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
            fitted = [image.resize((size, size), Image.Resampling.BICUBIC, box=box) for image in originals]
            images = np.stack([np.asarray(image).transpose(2, 0, 1) for image in fitted])
        shown[split] = images
        assert np.array_equal(np.stack([data.image(split, i) for i in range(len(files))]), images)
    assert (data.meta.height, data.meta.width) == shown["train"].shape[2:]
    values = shown["train"] / 255
    assert data.meta.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert data.meta.std == pytest.approx(values.std((0, 2, 3)).tolist(), rel=1e-12)


def test_a_folder_is_recorded_by_its_whole_path(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: ListeningProgress
) -> None:
    """The absolute path is recorded, because the next command may run in another folder."""
    monkeypatch.setenv("HOME", str(tree.parent))
    monkeypatch.chdir(tree.parent)
    for given in (Path(tree.name), Path("~") / tree.name):
        data = list_images("image_folder", root=tmp_path, source=given, progress=listening)
        assert data.files_folder == tree
    assert [(task.title, task.done, task.total) for task in listening.tasks] == [
        ("reading train", 17, 17),
        ("decoding train", 17, 17),
        ("reading val", 13, 13),
        ("decoding val", 13, 13),
    ]
    assert prepare("image_folder", root=tmp_path, source=Path("~") / tree.name).meta.name == "uneven"


def test_an_archive_in_any_order_is_the_same_data(tree: Path, packed: PackedDataset, tmp_path: Path) -> None:
    """Members come in their stored order, but each image gets its own position and label."""
    files = sorted(tree.rglob("*.png"), key=lambda path: hashlib.md5(str(path).encode()).digest())
    with zipfile.ZipFile(tmp_path / "shuffled.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(tree))
    data = prepare("image_folder", root=tmp_path, source=tmp_path / "shuffled.zip")
    assert data.meta.classes == CLASSES
    for split in COUNTS:
        assert np.array_equal(data.images(split), expected_images(split))
        assert data.labels(split).tolist() == expected_labels(split)
    assert data.meta.fingerprint == packed.meta.fingerprint


def test_statistics_of_large_bright_images_do_not_overflow() -> None:
    """From 66,052 pixels on, the sum of squares of a white image has more than 32 bits."""
    for side in (256, 257, 300):
        images = np.full((2, 2, side, side + 1), 255, dtype=np.uint8)
        images[:, 1, : side // 2] = 0
        statistics = ChannelStatistics(2)
        statistics.add(images)
        mean, std = statistics.mean_and_std()
        values = images / 255
        assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-9)
        assert std == pytest.approx(values.std((0, 2, 3)).tolist(), abs=1e-9)


Command = Callable[..., str]


@pytest.fixture
def neuscale(
    packed: PackedDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Function that runs a command in this process and returns its stdout."""
    monkeypatch.setenv("NEUSCALE_DATA", str(packed.folder.parent.parent))
    monkeypatch.setenv("COLUMNS", "300")

    def command(*words: str) -> str:
        assert run(list(words)) == 0
        return capsys.readouterr().out

    return command


def test_info_counts_what_is_there(neuscale: Command, packed: PackedDataset) -> None:
    found: dict[str, Any] = json.loads(neuscale("data", "info", "uneven", "--json"))
    assert found["images"] == TOTALS
    assert found["shape"] == [3, HEIGHT, WIDTH]
    assert list(found["classes"]) == CLASSES
    assert found["classes"] == {name: {split: COUNTS[split][name] for split in COUNTS} for name in CLASSES}
    assert found["bytes"] == sum(path.stat().st_size for path in packed.folder.iterdir())
    pixels = (17 + 13) * 3 * HEIGHT * WIDTH
    assert pixels < found["bytes"] < pixels + 30 * 8 + 4 * 128 + 3000  # labels, four headers and meta.json
    values = expected_images("train") / 255
    assert found["mean"] == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert found["std"] == pytest.approx(values.std((0, 2, 3)).tolist())
    assert found["fingerprint"] == packed.meta.fingerprint
    assert (found["name"], found["folder"]) == ("uneven", str(packed.folder))


def cells(out: str) -> list[list[str]]:
    """Return the rows of a printed table, each as its cells."""
    lines = [line for line in out.splitlines() if "│" in line or "┃" in line]
    return [[cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in lines]


def test_info_shows_these_numbers_to_people(neuscale: Command) -> None:
    rows = cells(neuscale("data", "info", "uneven"))
    shown = dict(row for row in rows if len(row) == 2)
    assert shown["images"] == "17 training, 13 validation"
    assert shown["pixels"] == "14×9, colour"
    values = expected_images("train") / 255
    statistics = zip(values.mean((0, 2, 3)), values.std((0, 2, 3)), strict=True)
    assert shown["mean ± deviation"] == "; ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in statistics)
    counts = [[name, str(COUNTS["train"][name]), str(COUNTS["val"][name])] for name in CLASSES]
    assert [row for row in rows if row[0] in CLASSES] == counts


def test_list_shows_classes_sides_and_counts(neuscale: Command) -> None:
    rows = {row["name"]: row for row in json.loads(neuscale("data", "list", "--json"))["datasets"]}
    assert rows["uneven"] == {
        "name": "uneven",
        "title": "uneven",
        "classes": 4,
        "size": "14×9",
        "state": "prepared",
        "images": TOTALS,
    }
    published = {
        "fashion_mnist": (10, 28),
        "cifar10": (10, 32),
        "cifar100": (100, 32),
        "tiny_imagenet": (200, 64),
    }
    for name, (classes, side) in published.items():
        assert (rows[name]["classes"], rows[name]["size"]) == (classes, f"{side}×{side}")
        assert (rows[name]["state"], rows[name]["images"]) == ("not prepared", None)
    table = {row[0]: row[1:] for row in cells(neuscale("data", "list"))}
    assert table["uneven"] == ["uneven", "4", "14×9", "prepared: 17 + 13 images"]
    assert table["tiny_imagenet"] == ["Tiny ImageNet", "200", "64×64", "not prepared"]
    assert table["image_folder"] == ["Image folder", "yours", "yours", "not prepared"]


@pytest.mark.parametrize("made", [{"fit": "stretch"}, {"value_range": [9, 3]}, {"value_range": "all"}])
def test_a_record_of_a_decoding_that_cannot_be_is_refused(
    packed: PackedDataset, made: dict[str, Any]
) -> None:
    """An impossible decoding is refused, even with the checksum recomputed after an edit."""
    other = replace(packed.meta, source=packed.meta.source | made)
    with pytest.raises((ValueError, TypeError)):
        PackedMeta.loads(other.dumps())
