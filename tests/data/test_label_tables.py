"""Labels from a table give the same data set as class folders, or an error that names the line."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ListeningProgress
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions
from neuscale.errors import DataError, UsageError

from .trees import as_folder, as_tar, as_zip, picture, ready, split_files

Rows = Sequence[Mapping[str, Any]]


def as_csv(rows: Rows, delimiter: str = ",") -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_json_lines(rows: Rows) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


WRITERS = {
    "labels.csv": as_csv,
    "labels.tsv": lambda rows: as_csv(rows, "\t"),
    "semicolons.csv": lambda rows: as_csv(rows, ";"),
    "bom.csv": lambda rows: "\ufeff" + as_csv(rows).replace("\r\n", "\n"),
    "labels.jsonl": as_json_lines,
}


@pytest.fixture
def files() -> dict[str, bytes]:
    return split_files(["cat", "dog"])


def rows_of(
    files: Mapping[str, bytes], image: str = "file_name", label: str = "label"
) -> list[dict[str, Any]]:
    """Return a row for each image, in reverse order of the names."""
    found = []
    for name in sorted(files, reverse=True):
        split, class_name, _ = name.split("/")
        found.append({image: name, label: class_name, "split": split, "note": 'a "quoted", note'})
    return found


@pytest.mark.parametrize("table", WRITERS)
def test_every_kind_of_table_is_the_tree_of_the_same_files(
    tmp_path: Path, files: dict[str, bytes], table: str
) -> None:
    tree = as_folder(files, tmp_path / "tree")
    (tmp_path / table).write_text(WRITERS[table](rows_of(files)), newline="")
    expected = ready(tmp_path, tree, "tree").meta
    for name, source in (
        ("folder", tree),
        ("zip", as_zip(files, tmp_path / "z")),
        ("tar", as_tar(files, tmp_path / "t")),
    ):
        found = ready(tmp_path, source, name, labels=tmp_path / table).meta
        assert (found.classes, found.counts) == (["cat", "dog"], {"train": 6, "val": 4})
        assert found.fingerprint == expected.fingerprint


def test_columns_are_chosen_where_they_are_called_otherwise(tmp_path: Path, files: dict[str, bytes]) -> None:
    tree = as_folder(files, tmp_path / "tree")
    rows = [{"x": row["f"], "y": row["l"], "z": row["split"]} for row in rows_of(files, "f", "l")]
    (tmp_path / "t.csv").write_text(as_csv(rows))
    with pytest.raises(UsageError, match=r"which column it is, is not clear; there are 'x', 'y', 'z'"):
        ready(tmp_path, tree, labels=tmp_path / "t.csv")
    chosen = {"image_column": "x", "label_column": "y", "split_column": "z"}
    assert ready(tmp_path, tree, labels=tmp_path / "t.csv", **chosen).meta.counts == {"train": 6, "val": 4}
    with pytest.raises(UsageError, match="there is no column 'w'; there are 'x', 'y', 'z'"):
        ready(tmp_path, tree, "y", labels=tmp_path / "t.csv", **{**chosen, "image_column": "w"})


@pytest.mark.parametrize(
    "name", ["images/all/{}.png", "{}.png", "all/{}.png", "{}", "./{}.png", "images\\all\\{}.png"]
)
def test_names_start_at_the_top_or_where_all_images_are_and_may_lack_their_suffix(
    tmp_path: Path, name: str
) -> None:
    tree = as_folder({f"images/all/{i}.png": picture(i) for i in range(8)}, tmp_path / "tree")
    rows = [
        {"id": name.format(i), "label": "ab"[i % 2], "split": "train" if i < 6 else "test"} for i in range(8)
    ]
    (tree / "t.csv").write_text(as_csv(rows))
    data = ready(tmp_path, tree, labels=tree / "t.csv")
    assert data.meta.counts == {"train": 6, "val": 2} and data.meta.source["held_out"] == "test"


def test_names_may_start_at_the_table_that_lies_above_the_images(tmp_path: Path) -> None:
    tree = as_folder({f"set/images/{i}.png": picture(i) for i in range(8)}, tmp_path)
    rows = [{"filename": f"images/{i}.png", "label": "ab"[i % 2]} for i in range(8)]
    (tree / "set" / "t.csv").write_text(as_csv(rows))
    data = ready(tmp_path, tree / "set" / "images", labels=tree / "set" / "t.csv", val_share=0.5)
    assert data.meta.counts == {"train": 4, "val": 4}
    with pytest.raises(DataError, match=r"at its top is '0\.png'") as caught:
        ready(tmp_path, tree / "set" / "images", "y")
    assert "need a table of their classes: `labels`" in caught.value.fix


def test_hugging_faces_tables_lie_in_the_folders_of_the_splits(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    """As for `datasets`' ImageFolder, a metadata.csv or metadata.jsonl beside the images names them."""
    flat = {}
    for split in ("train", "validation", "test"):
        of_split = [name for name in files if name.startswith(split[:3])] or list(files)[:2]
        rows = []
        for name in of_split:
            inner = name.replace("/", "_")
            flat[f"data/{split}/{inner}"] = files[name]
            rows.append({"file_name": inner, "label": name.split("/")[1]})
        flat[f"data/{split}/metadata.jsonl"] = as_json_lines(rows).encode()
    for source in (as_folder(flat, tmp_path / "tree"), as_zip(flat, tmp_path / "z")):
        data = ready(tmp_path, source, source.stem, labels=Path("metadata.jsonl"))
        assert data.meta.counts == {"train": 6, "val": 4, "test": 2}


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    tree = as_folder({f"{i}.png": picture(i) for i in range(24)}, tmp_path / "tree")
    rows = [{"image": f"{i}.png", "class": i % 12} for i in range(24)]
    (tmp_path / "t.jsonl").write_text(as_json_lines(rows))
    data = ready(tmp_path, tree, labels=tmp_path / "t.jsonl", val_share=0.5)
    assert data.meta.classes == [str(i) for i in range(12)]
    assert data.class_counts("val") == [1] * 12


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nothing.png,cat,train", r"1 of 11 images are not in .*: nothing.png \(line 12\)"),
        ("train/cat/0.png,dog,train", "is named as 'cat' and as 'dog', first in line"),
        ("train/cat/0.png,cat,train", "is named twice, first in line"),
        ("train/cat/0.png,,train", "line 12: it lacks the image or its class"),
        ("train/cat/0.png,cat,maybe", "line 12: 'maybe' is no split"),
        ("train/cat/0.png,cat", "line 12: 2 values for 3 columns"),
        ("../../secret.png,cat,train", r"1 of 11 images are not in"),
        ("train/cat/0.png,wolf,val", "is named as|has no training image"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, files: dict[str, bytes], line: str, words: str) -> None:
    tree = as_folder(files, tmp_path / "tree")
    (tmp_path / "secret.png").write_bytes(picture(1))
    rows = [{key: row[key] for key in ("file_name", "label", "split")} for row in rows_of(files)]
    (tmp_path / "t.csv").write_text(as_csv(rows).replace("\r\n", "\n") + line + "\n")
    with pytest.raises(DataError, match=words):
        ready(tmp_path, tree, labels=tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", DataError, "it names no images"),
        (b"file_name,label\n", DataError, "it names no images"),
        (b"file_name,label\na.png,\xff\n", DataError, "not UTF-8"),
        (b"file_name,label\na.png,x\n", DataError, "are not in"),
        (b"\x00\x01", (DataError, UsageError), ""),
    ],
)
def test_a_table_that_is_none_is_refused(
    tmp_path: Path, files: dict[str, bytes], content: bytes, error: Any, words: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(error, match=words):
        ready(tmp_path, as_folder(files, tmp_path / "tree"), labels=tmp_path / "t.csv")


def test_without_a_split_the_option_is_named_and_taken(tmp_path: Path, files: dict[str, bytes]) -> None:
    tree = as_folder(files, tmp_path / "tree")
    rows = [{"file_name": row["file_name"], "label": row["label"]} for row in rows_of(files)]
    (tmp_path / "t.csv").write_text(as_csv(rows))
    with pytest.raises(DataError, match="no image is held out") as caught:
        ready(tmp_path, tree, labels=tmp_path / "t.csv")
    assert "`val_share` 0.1" in caught.value.fix
    assert ready(tmp_path, tree, labels=tmp_path / "t.csv", val_share=0.2).class_counts("val") == [1, 1]


def test_another_table_makes_another_data_set(tmp_path: Path, files: dict[str, bytes]) -> None:
    tree, table = as_folder(files, tmp_path / "tree"), tmp_path / "t.csv"
    table.write_text(as_csv(rows_of(files)))
    for make in (prepare, list_images):
        options = SourceOptions(size=8, labels=table)
        table.write_text(as_csv(rows_of(files)))
        first = make("image_folder", root=tmp_path, source=tree, save_as="x", options=options)
        assert (
            make("image_folder", root=tmp_path, source=tree, save_as="x", options=options).meta == first.meta
        )
        table.write_text(as_csv(rows_of(files)).replace(",dog,", ",wolf,"))
        with pytest.raises(DataError, match="prepared already, but with other labels in"):
            make("image_folder", root=tmp_path, source=tree, save_as="x", options=options)


def test_images_that_the_table_leaves_out_are_counted(
    tmp_path: Path, files: dict[str, bytes], listening: ListeningProgress
) -> None:
    tree = as_folder(files | {"more/1.png": b"x", "more/2.png": b"x"}, tmp_path / "tree")
    (tmp_path / "t.csv").write_text(as_csv(rows_of(files)))
    options = SourceOptions(labels=tmp_path / "t.csv")
    prepare("image_folder", root=tmp_path, source=tree, options=options, progress=listening)
    assert listening.warnings == ["left out: 2 images that the table does not name"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_a_table_are_read_or_refused(
    tmp_path: Path, files: dict[str, bytes], data: st.DataObject
) -> None:
    from fuzzing import damaged

    tree = tmp_path / "tree"
    if not tree.exists():
        as_folder(files, tree)
    kind = data.draw(st.sampled_from(["labels.csv", "labels.jsonl"]))
    (tmp_path / kind).write_bytes(data.draw(damaged(WRITERS[kind](rows_of(files)).encode())))
    try:
        found = prepare(
            "image_folder",
            root=tmp_path,
            source=tree,
            save_as="x",
            options=SourceOptions(labels=tmp_path / kind),
            force=True,
        )
    except (DataError, UsageError) as error:
        assert error.problem
    else:
        assert sum(found.meta.counts.values()) <= 10
