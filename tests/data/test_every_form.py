"""The same images give the same data set, whatever container they come in."""

import csv
import io
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .trees import Files, as_folder, as_parquet, as_shards, as_tar, as_zip, picture, ready, split_files

MODES = ["w:", "w:gz", "w:bz2", "w:xz", "w:zst"]


@pytest.mark.parametrize("mode", MODES)
def test_compressed_tars_are_the_folder(tmp_path: Path, mode: str) -> None:
    if mode == "w:zst":
        pytest.importorskip("backports.zstd")
    files = split_files(["cat", "dog"])
    tree = ready(tmp_path, as_folder(files, tmp_path / "tree"), "tree")
    assert ready(tmp_path, as_tar(files, tmp_path / "t", mode), "t").meta.fingerprint == tree.meta.fingerprint


TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters='/\\:*?"<>|.'), min_size=1, max_size=12
).filter(lambda text: text.strip() == text and text[0] not in ".@#$" and not text.isdecimal())


@st.composite
def trees(draw: st.DrawFn) -> dict[str, bytes]:
    """Draw images of any format in `train/<class>/` and `val/<class>/` or a subfolder, with any names."""
    names = draw(st.lists(TEXT, min_size=2, max_size=4, unique_by=lambda n: unicodedata.normalize("NFC", n)))
    forms = st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
    below = draw(st.sampled_from(["", "images/"]))
    files = {}
    for split in ("train", "val"):
        for name in names:
            for number in range(draw(st.integers(1, 3))):
                form = draw(forms)
                stem = f"{number}{draw(TEXT)}"
                files[f"{split}/{name}/{below}{stem}.{form.lower()}"] = picture(len(files), form)
    return files


def as_table(files: Files, path: Path, suffix: str) -> Path:
    """Write a table (CSV, TSV or JSON Lines) of the name, label and split of each file."""
    rows = [
        {"file_name": name, "label": name.split("/")[1], "split": name.split("/")[0]}
        for name in sorted(files)
    ]
    path = path.with_suffix(suffix)
    if suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, ["file_name", "label", "split"], delimiter="," if suffix == ".csv" else "\t"
    )
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(stream.getvalue(), newline="")
    return path


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=trees(), data=st.data())
def test_any_tree_is_the_same_from_a_folder_an_archive_a_table_and_shards(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    folder = as_folder(files, tmp_path / "tree")
    archive = as_zip(files, tmp_path / "z")
    suffix = data.draw(st.sampled_from([".csv", ".tsv", ".jsonl"]))
    mode = data.draw(st.sampled_from(["w:", "w:xz"]))
    table = as_table(files, tmp_path / "table", suffix)
    found = {
        "tree": ready(tmp_path, folder, "tree"),
        "zip": ready(tmp_path, archive, "z"),
        "tar": ready(tmp_path, as_tar(files, tmp_path / "t", mode), "t"),
        "table": ready(tmp_path, folder, "table", labels=table),
        "table of a zip": ready(tmp_path, archive, "tablez", labels=table),
        "shards": ready(tmp_path, as_shards(files, tmp_path / "shards"), "shards"),
    }
    assert {form: each.meta.fingerprint for form, each in found.items()} == dict.fromkeys(
        found, found["tree"].meta.fingerprint
    )
    classes = {unicodedata.normalize("NFC", name.split("/")[1]) for name in files}
    assert found["tree"].meta.classes == sorted(classes)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=trees())
def test_any_tree_is_the_same_from_parquet(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    pytest.importorskip("pyarrow")
    tmp_path = tmp_path_factory.mktemp("any")
    tree = ready(tmp_path, as_folder(files, tmp_path / "tree"), "tree").meta
    assert ready(tmp_path, as_parquet(files, tmp_path / "p"), "p").meta.fingerprint == tree.fingerprint
