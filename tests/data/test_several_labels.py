"""Images with several labels or none: every notation gives the same data set."""

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import ListeningProgress
from neuscale.data.datasets import sample_grid
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.meta import PackedMeta
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions
from neuscale.errors import DataError, UsageError

from .trees import as_folder, as_zip, picture, ready

CLASSES = ["bird", "cat", "dog"]
LABELS = [["cat"], ["cat", "dog"], [], ["bird", "dog"], ["dog"], ["cat", "dog"], ["bird"], []]
SPLITS = ["train"] * 6 + ["val"] * 2
FILES = {f"{i}.png": picture(i) for i in range(len(LABELS))}

Labels = list[list[str]]


def table(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def cells(separator: str) -> Callable[[Labels], str]:
    def write(labels: Labels) -> str:
        joined = [separator.join(reversed(found)) for found in labels]
        return table(
            [{"file": f"{i}.png", "labels": joined[i], "split": SPLITS[i]} for i in range(len(labels))]
        )

    return write


def rows(labels: Labels) -> str:
    """Write a row for each label, and a row with an empty cell for an image without labels."""
    lines = [(i, label) for i, found in enumerate(labels) for label in found or [""]]
    return table([{"image": f"{i}.png", "class": label, "split": SPLITS[i]} for i, label in lines[::-1]])


def lists(labels: Labels) -> str:
    lines = [{"image": f"{i}.png", "label": found, "split": SPLITS[i]} for i, found in enumerate(labels)]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def columns(one: str, zero: str) -> Callable[[Labels], str]:
    def write(labels: Labels) -> str:
        return table(
            [
                {"id": f"{i}.png", **{name: one if name in labels[i] else zero for name in CLASSES}}
                | {"split": SPLITS[i]}
                for i in range(len(labels))
            ]
        )

    return write


FORMS: dict[str, tuple[str, Callable[[Labels], str], dict[str, Any]]] = {
    "bars": ("t.csv", cells("|"), {"label_separator": "|"}),
    "spaces": ("t.csv", cells(" "), {"label_separator": " "}),
    "words": ("t.csv", cells(" and "), {"label_separator": " and "}),
    "rows": ("t.csv", rows, {"multi_label": True}),
    "lists": ("t.jsonl", lists, {"multi_label": True}),
    "columns": ("t.csv", columns("1", "0"), {"label_columns": "bird,cat, dog"}),
    "decimals": ("t.csv", columns("1.0", "0.0"), {"label_columns": "bird,cat,dog"}),
}


def sets_of(data: PackedDataset | ListedDataset, split: str) -> list[list[str]]:
    """Return the labels of each image, by name."""
    chosen = data.meta.label_table()[data.labels(split)]
    return [[data.meta.classes[i] for i in np.flatnonzero(row)] for row in chosen]


def check(data: PackedDataset | ListedDataset) -> None:
    meta = data.meta
    assert meta.classes == CLASSES and meta.counts == {"train": 6, "val": 2}
    # Images are sorted by their label sets, then by name; sets are sorted by their class numbers.
    assert sets_of(data, "train") == [[], ["bird", "dog"], ["cat"], ["cat", "dog"], ["cat", "dog"], ["dog"]]
    assert sets_of(data, "val") == [[], ["bird"]]
    assert data.class_counts("train") == [1, 3, 4] and data.class_counts("val") == [1, 0, 0]
    assert [meta.label_name(int(label)) for label in data.labels("train")[:4]] == [
        "(none)",
        "bird + dog",
        "cat",
        "cat + dog",
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_way_of_writing_several_labels_is_the_same_data_set(tmp_path: Path, form: str) -> None:
    name, write, options = FORMS[form]
    tree = as_folder(FILES, tmp_path / "tree")
    (tmp_path / name).write_text(write(LABELS))
    data = ready(tmp_path, tree, labels=tmp_path / name, **options)
    check(data)
    for place, file in enumerate(["2", "3", "0", "1", "5", "4"]):
        assert data.names("train")[place] == f"{file}.png"
    again = ready(tmp_path, as_zip(FILES, tmp_path / "z"), "again", labels=tmp_path / name, **options)
    assert again.meta.fingerprint == data.meta.fingerprint
    kept = list_images(
        "image_folder",
        source=tree,
        root=tmp_path,
        save_as="kept",
        options=SourceOptions(8, labels=tmp_path / name, **options),
    )
    check(kept)
    check(ListedDataset.open(kept.folder))
    with pytest.raises(UsageError, match="an image of several labels has no one folder"):
        write_image_tree(
            "image_folder",
            source=tree,
            root=tmp_path,
            save_as="folders",
            options=SourceOptions(labels=tmp_path / name, **options),
        )
    assert not (tmp_path / "folders" / "folders").exists()


@pytest.mark.parametrize("kind", ["names", "numbers", "columns"])
def test_parquet_has_them_as_lists_or_columns(tmp_path: Path, kind: str) -> None:
    pa: Any = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content: dict[str, Any] = {"image": list(FILES.values()), "split": SPLITS}
    metadata, options = None, {"multi_label": True}
    if kind == "columns":
        content |= {name: [name in found for found in LABELS] for name in CLASSES}
        options = {"label_columns": "bird,cat,dog"}
    elif kind == "names":
        content["label"] = pa.array(LABELS, pa.list_(pa.string()))
    else:
        content["label"] = pa.array([[CLASSES.index(name) for name in found] for found in LABELS])
        features = {"label": {"feature": {"names": CLASSES, "_type": "ClassLabel"}, "_type": "List"}}
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    written = pa.table(content).replace_schema_metadata(metadata)
    parquet.write_table(written, tmp_path / "p.parquet")
    check(ready(tmp_path, tmp_path / "p.parquet", **options))
    if kind != "columns":
        with pytest.raises(DataError, match="the class is no text and no number") as caught:
            ready(tmp_path, tmp_path / "p.parquet", "other")
        assert "`multi_label`" in caught.value.fix


def test_arrays_have_them_as_ones(tmp_path: Path) -> None:
    """Labels as [N, classes] of zeros and ones are read, as in ChestMNIST."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 6, 3)).astype(np.uint8)
    ones = np.array([[name in found for name in CLASSES] for found in LABELS], np.uint8)
    arrays = {"train_images": pixels[:6], "train_labels": ones[:6], "val_images": pixels[6:]}
    np.savez(tmp_path / "a.npz", **arrays, val_labels=ones[6:], class_names=np.array(CLASSES))
    data = ready(tmp_path, tmp_path / "a.npz", multi_label=True)
    check(data)
    np.testing.assert_array_equal(data.image("train", 2), pixels[0].transpose(2, 0, 1))
    with pytest.raises(DataError, match="not one 1 in each row") as caught:
        ready(tmp_path, tmp_path / "a.npz", "other")
    assert "`multi_label`" in caught.value.fix
    np.savez(tmp_path / "b.npz", **arrays | {"train_labels": ones[:6] * 2}, val_labels=ones[6:])
    with pytest.raises(DataError, match="are not zeros and ones"):
        ready(tmp_path, tmp_path / "b.npz", "other", multi_label=True)


def test_some_of_all_images_are_held_out(tmp_path: Path) -> None:
    labels = {
        f"{i}.png": "|".join(name for bit, name in enumerate("abcd") if i >> bit & 1) for i in range(64)
    }
    tree = as_folder({name: picture(i) for i, name in enumerate(labels)}, tmp_path / "tree")
    (tmp_path / "t.csv").write_text(table([{"image": n, "label": found} for n, found in labels.items()]))
    options = {"labels": tmp_path / "t.csv", "label_separator": "|"}
    with pytest.raises(DataError, match="no image is held out"):
        ready(tmp_path, tree, **options)
    data = ready(tmp_path, tree, val_share=0.25, **options)
    assert data.meta.counts == {"train": 48, "val": 16} and len(data.meta.label_sets or ()) == 16
    other = ready(tmp_path, tree, "other", val_share=0.25, split_seed=1, **options)
    assert set(other.names("val")) != set(data.names("val"))
    parts = [ready(tmp_path, tree, f"fold{i}", folds=4, fold=i, **options) for i in range(4)]
    held = [name for part in parts for name in part.names("val")]
    assert sorted(held) == sorted(labels), "each image is held out once"


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        (
            "t.csv",
            "image,cat,dog\n0.png,1,2\n",
            {"label_columns": "cat,dog"},
            "dog is '2', neither 0 nor 1",
        ),
        (
            "t.csv",
            "image,cat,dog\n0.png,1,\n",
            {"label_columns": "cat,dog"},
            "line 2: dog is '', neither",
        ),
        ("t.csv", "image,cat\n0.png,1\n", {"label_columns": "cat,fox"}, "there is no column 'fox'"),
        ("t.csv", "image,label\n0.png,\n1.png,\n", {"label_separator": "|"}, "no image has a label"),
        ("t.csv", "image,label\n,a\n", {"label_separator": "|"}, "line 2: it lacks the image"),
        (
            "t.jsonl",
            '{"image": "0.png", "label": ["a", 1.5]}\n',
            {"multi_label": True},
            "no text and no number",
        ),
        ("t.jsonl", '{"image": "0.png", "label": ["a", " "]}\n', {"multi_label": True}, "the class is empty"),
        ("t.jsonl", '{"image": "0.png", "label": ["a", "b"]}\n', {}, "no text and no number"),
        (
            "t.csv",
            "image,label\n0.png,a|b\n0.png,c\n",
            {"label_separator": "|"},
            "named as .* first in line 2",
        ),
        (
            "t.csv",
            "image,label,split\n0.png,a,train\n0.png,b,val\n",
            {"multi_label": True},
            "line 3: 0.png is for val, and in line 2 for train",
        ),
        (
            "t.csv",
            "image,label,split\n0.png,a|b,train\n1.png,c,val\n",
            {"label_separator": "|"},
            "the class 'c' has no training image",
        ),
    ],
)
def test_what_does_not_say_the_labels_is_refused(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], words: str
) -> None:
    (tmp_path / name).write_text(content)
    tree = as_folder(FILES, tmp_path / "tree")
    with pytest.raises((DataError, UsageError), match=words):
        ready(tmp_path, tree, labels=tmp_path / name, **options)
    assert not (tmp_path / "packed" / "x").exists()


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`label_columns` are one for each class"):
        SourceOptions(label_columns="a,b", label_column="c")
    with pytest.raises(UsageError, match="`label_separator` is empty"):
        SourceOptions(label_separator="")
    tree = as_folder({"train/a/0.png": picture(0), "val/a/1.png": picture(1)}, tmp_path / "tree")
    with pytest.raises(UsageError, match="`multi_label` means nothing for folders of classes"):
        ready(tmp_path, tree, multi_label=True)


def test_the_sets_belong_to_the_fingerprint_and_are_checked(tmp_path: Path) -> None:
    tree = as_folder(FILES, tmp_path / "tree")
    (tmp_path / "t.csv").write_text(cells("|")(LABELS))
    data = ready(tmp_path, tree, labels=tmp_path / "t.csv", label_separator="|")
    meta = data.meta
    fields = {name: getattr(meta, name) for name in meta.__dataclass_fields__}
    assert meta.label_sets is not None
    other = PackedMeta(**{**fields, "label_sets": meta.label_sets[::-1]})
    assert other.fingerprint != meta.fingerprint
    assert PackedMeta.loads(meta.dumps()) == meta
    for wrong in ([[0, 3]], [[1, 0]], [[0, 0]], [[-1]]):
        with pytest.raises(ValueError, match="label_sets"):
            PackedMeta.loads(PackedMeta(**{**fields, "label_sets": wrong}).dumps())
    np.save(data.folder / "val_labels.npy", np.array([0, len(meta.label_sets)]))
    with pytest.raises(DataError, match="a label is out of range"):
        PackedDataset.open(data.folder).labels("val")


def test_the_record_of_one_label_is_as_it_was(tmp_path: Path) -> None:
    files = {f"{split}/{name}/0.png": picture(i) for i, (split, name) in enumerate(
        [("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")]
    )}  # fmt: skip
    data = ready(tmp_path, as_folder(files, tmp_path / "tree"))
    assert "label_sets" not in json.loads((data.folder / "meta.json").read_text())


def test_an_image_is_shown_in_each_of_its_classes(tmp_path: Path, listening: ListeningProgress) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    stream = io.BytesIO()
    Image.fromarray(red).save(stream, "PNG")
    tree = as_folder(
        {"0.png": stream.getvalue(), "1.png": picture(1), "2.png": picture(2)}, tmp_path / "tree"
    )
    (tmp_path / "t.csv").write_text("image,label,split\n0.png,a|b,train\n1.png,c,train\n2.png,c,val\n")
    data = prepare(
        "image_folder",
        root=tmp_path,
        source=tree,
        options=SourceOptions(labels=tmp_path / "t.csv", label_separator="|"),
        save_as="x",
        progress=listening,
    )
    assert any(
        "an image may have several labels; 2 sets of them occur" in line for line in listening.messages
    )
    pixels = np.asarray(sample_grid(data).convert("RGB"))
    red_rows = np.flatnonzero((pixels == [255, 0, 0]).all(2).any(1))
    assert np.diff(red_rows).max() > 1, "two rows show it, and the third does not"
    assert len(red_rows) * 3 < 2.2 * pixels.shape[0]


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    labels=st.lists(st.sets(st.sampled_from(["x", "y", "z", "é"])), min_size=3, max_size=8).filter(
        lambda found: set().union(*found[:-1]) >= found[-1] and any(found)
    )
)
def test_labels_come_back_as_they_were(
    labels: list[set[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    with zipfile.ZipFile(folder / "i.zip", "w") as archive:
        for i in range(len(labels)):
            archive.writestr(f"{i}.png", picture(i))
    lines = [
        {"image": f"{i}.png", "label": sorted(found), "split": "val" if i == len(labels) - 1 else "train"}
        for i, found in enumerate(labels)
    ]
    (folder / "t.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    data = ready(folder, folder / "i.zip", labels=folder / "t.jsonl", multi_label=True)
    for split in ("train", "val"):
        for name, found in zip(data.names(split), sets_of(data, split), strict=True):
            assert set(found) == labels[int(name.partition(".")[0])]
