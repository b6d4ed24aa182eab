"""An image tree in any container gives the same data set, or one message that says what is wrong with it."""

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import ArchiveBuilder, ListeningProgress, TreeBuilder
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.data.sources.open_images import open_images
from neuscale.errors import DataError


def pack(source: Path, root: Path, **options: object) -> PackedDataset:
    return prepare("image_folder", root=root, source=source, save_as="images", **options)  # type: ignore[arg-type]


def test_folder_zip_and_tar_of_the_same_tree_are_the_same_data(
    tmp_path: Path, build_image_tree: TreeBuilder, build_archive: ArchiveBuilder
) -> None:
    """Runs stay comparable, whatever container their data came in."""
    tree = build_image_tree(tmp_path / "tree")
    below = tmp_path / "outer"
    below.mkdir()
    (below / "tree").symlink_to(tree)
    sources = [tree, below]
    sources += [build_archive(tree, tmp_path / name) for name in ("a.zip", "a.tar", "a.tar.gz")]
    fingerprints = {pack(path, tmp_path / f"root{i}").meta.fingerprint for i, path in enumerate(sources)}
    assert len(fingerprints) == 1


def test_every_image_is_at_its_place_with_its_label(
    tmp_path: Path, build_image_tree: TreeBuilder, listening: ListeningProgress
) -> None:
    tree = build_image_tree(tmp_path / "tree", train=150, size=(9, 7), held_out="test")
    data = pack(tree, tmp_path, progress=listening)
    assert data.meta.classes == ["cat", "dog", "owl"]
    assert (data.meta.channels, data.meta.height, data.meta.width) == (3, 7, 9)
    assert data.meta.counts == {"train": 450, "val": 6}
    assert data.meta.source["held_out"] == "test"
    for split, folder in (("train", "train"), ("val", "test")):
        files = sorted((tree / folder).rglob("*.png"))
        expected = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])
        assert np.array_equal(data.images(split), expected)
        assert [data.meta.classes[label] for label in data.labels(split)] == [f.parent.name for f in files]
    packing = [task for task in listening.tasks if task.unit == "img"]
    assert [(task.total, task.done) for task in packing] == [(450, 450), (6, 6)]


def test_images_below_subfolders_count_and_clutter_does_not(
    tmp_path: Path, build_image_tree: TreeBuilder
) -> None:
    tree = build_image_tree(tmp_path / "tree")
    (tree / "train" / "cat" / "more").mkdir()
    (tree / "train" / "cat" / "0000.png").rename(tree / "train" / "cat" / "more" / "x.PNG")
    for clutter in (".DS_Store", "train/.hidden/x.png", "__MACOSX/train/cat/._0.png", "train/dog/Thumbs.db"):
        (tree / clutter).parent.mkdir(parents=True, exist_ok=True)
        (tree / clutter).write_bytes(b"clutter")
    (tree / "train" / "dog" / "labels.csv").write_text("1,2")
    assert pack(tree, tmp_path).meta.counts == {"train": 12, "val": 6}


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_the_held_out_folder_may_have_any_usual_name(
    held_out: str, tmp_path: Path, build_image_tree: TreeBuilder
) -> None:
    source = open_images(build_image_tree(tmp_path, held_out=held_out))
    assert source.held_out == held_out


def test_differing_sizes_ask_for_a_size_and_a_size_makes_squares(
    tmp_path: Path, build_image_tree: TreeBuilder
) -> None:
    tree = build_image_tree(tmp_path / "tree", size=(40, 30))
    odd = tree / "train" / "dog" / "0001.png"
    Image.new("RGB", (20, 64), "red").save(odd)
    with pytest.raises(DataError, match=r"dog/0001\.png is 20×64, others are 40×30") as caught:
        pack(tree, tmp_path)
    assert "Set `size`" in caught.value.fix
    assert not (tmp_path / "packed" / "images").exists()

    data = pack(tree, tmp_path, size=16)
    assert data.images("train").shape == (12, 3, 16, 16)
    file = tree / "train" / "cat" / "0000.png"
    expected = ImageOps.fit(Image.open(file), (16, 16), method=Image.Resampling.BICUBIC)
    assert np.array_equal(data.images("train")[0], np.asarray(expected).transpose(2, 0, 1))


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.unlink()
    image.save(path, **options)  # type: ignore[arg-type]


def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    """Grayscale, palette, transparent, CMYK and 16-bit files, found in most collections, become RGB."""
    tree = build_image_tree(tmp_path / "tree", classes=("cat",), train=7)
    base = Image.fromarray(np.full((8, 8), 100, np.uint8))
    save(base, tree / "train/cat/0000.png")
    save(base.convert("P"), tree / "train/cat/0001.png")
    save(base.convert("RGBA"), tree / "train/cat/0002.png")
    save(base.convert("LA"), tree / "train/cat/0003.png")
    wide = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    save(wide, tree / "train/cat/0004.png")
    save(base.convert("1"), tree / "train/cat/0005.png")
    (tree / "train/cat/0006.png").unlink()
    base.convert("RGB").convert("CMYK").save(tree / "train/cat/0006.jpg", quality=100)
    images = pack(tree, tmp_path).images("train")
    for place in (0, 1, 2, 3, 4):
        assert (images[place] == 100).all(), place
    assert set(np.unique(images[5])) <= {0, 255}
    assert abs(images[6].astype(int) - 100).max() <= 2


def damage(tree: Path, kind: str) -> None:
    victim = tree / "train" / "dog" / "0002.png"
    content = victim.read_bytes()
    if kind == "empty":
        victim.write_bytes(b"")
    elif kind == "text":
        victim.write_text("I am no image")
    elif kind == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif kind.startswith("bomb"):
        side = int(kind.removeprefix("bomb"))
        header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
        victim.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    elif kind == "float":
        victim.unlink()
        Image.fromarray(np.zeros((8, 8), np.float32)).save(victim.with_suffix(".tif"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty", "the file is empty"),
        ("text", "not an image"),
        ("cut", "cut short"),
        ("bomb9000", "9000×9000 pixels are out of all proportion"),
        ("bomb60000", "out of all proportion"),
        ("float", "8 bits"),
    ],
)
@pytest.mark.parametrize("container", ["folder", "zip", "tar.gz"])
def test_an_image_that_cannot_be_used_is_named_and_nothing_is_packed(
    kind: str,
    says: str,
    container: str,
    tmp_path: Path,
    build_image_tree: TreeBuilder,
    build_archive: ArchiveBuilder,
) -> None:
    tree = build_image_tree(tmp_path / "tree")
    damage(tree, kind)
    source = tree if container == "folder" else build_archive(tree, tmp_path / f"source.{container}")
    with pytest.raises(DataError, match=says) as caught:
        pack(source, tmp_path)
    assert f"{source}: train/dog/0002." in caught.value.problem and caught.value.fix
    assert [path.name for path in (tmp_path / "packed").iterdir()] == [".images.lock"]


def test_an_archive_of_another_format_inside_an_image_name_is_refused(
    tmp_path: Path, build_image_tree: TreeBuilder
) -> None:
    """An EPS file named .png is refused, because Pillow would pass it to Ghostscript."""
    tree = build_image_tree(tmp_path / "tree")
    Image.new("RGB", (8, 8)).save(tree / "train" / "cat" / "0001.png", format="EPS")
    with pytest.raises(DataError, match="not an image"):
        pack(tree, tmp_path)


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("container", ["folder", "zip", "tar.gz"])
def test_a_class_folder_with_no_image_is_named(
    split: str, container: str, tmp_path: Path, build_image_tree: TreeBuilder, build_archive: ArchiveBuilder
) -> None:
    tree = build_image_tree(tmp_path / "tree")
    remove_all(tree / split / "dog")
    source = tree if container == "folder" else build_archive(tree, tmp_path / f"source.{container}")
    with pytest.raises(DataError, match=f"{split}/dog: there is no image in this class folder"):
        pack(source, tmp_path)


def test_layout_mistakes_are_named(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    tree = build_image_tree(tmp_path / "tree")
    (tree / "val" / "dog").rename(tree / "val" / "wolf")
    with pytest.raises(DataError, match="val/wolf: there is no such class in train"):
        pack(tree, tmp_path)
    (tree / "val").rename(tree / "other")
    with pytest.raises(DataError, match="no folder of held-out images"):
        pack(tree, tmp_path)
    (tree / "train").rename(tree / "images")
    with pytest.raises(
        DataError, match="no folder 'train' in it; its folders of images are 'images', 'other'"
    ):
        pack(tree, tmp_path)
    stray = build_image_tree(tmp_path / "stray")
    Image.new("RGB", (8, 8)).save(stray / "train" / "lost.png")
    with pytest.raises(DataError, match=r"train/lost\.png: this image lies in no class folder"):
        pack(stray, tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        pack(tmp_path / "nowhere", tmp_path)


def test_a_folder_that_links_to_itself_ends(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    tree = build_image_tree(tmp_path / "tree")
    (tree / "train" / "cat" / "loop").symlink_to(tree)
    assert open_images(tree).counts["val"] == 6


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    tree = build_image_tree(tmp_path / "tree")
    (tree / "train" / "cat").rename(os.fsdecode(os.fsencode(tree / "train") + b"/caf\xe9"))
    with pytest.raises(DataError, match="not valid UTF-8") as caught:
        pack(tree, tmp_path)
    caught.value.problem.encode()
