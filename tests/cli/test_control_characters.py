"""Control characters in file names, class names and records never reach the terminal: they are escaped."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Said, TreeBuilder
from neuscale.runs.manifest import read_manifest, write_manifest

Command = Callable[..., Said]
TITLE = "\x1b]0;evil\x07"  # sets a terminal's title
CLEAR = "\x1b[2J\x9b3J"
CLASSES = (f"cat{CLEAR}", f"dog\u202e{TITLE}", "owl\x08\x08\r")
SHOWN = re.escape(r"cat\x1b[2J\x9b3J")


def assert_plain(said: Said) -> None:
    assert "not foreseen" not in said.err
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", said.out + said.err), said


@pytest.fixture
def photos(build_image_tree: TreeBuilder, tmp_path: Path) -> Path:
    """Image tree with terminal control sequences in its class and file names."""
    tree = build_image_tree(tmp_path / "photos", classes=CLASSES, train=4, val=2)
    for path in sorted(tree.rglob("*.png")):
        path.rename(path.with_name(f"{path.stem}{CLEAR}.png"))
    return tree


def test_names_of_classes_and_files(
    neuscale: Command,
    runs: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_words: list[str],
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    words = ["image_folder", "--source", str(photos)]
    broken = next(photos.glob("train/*/*"))
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    for more in ([], ["--layout", "files"], ["--skip-bad"]):
        said = neuscale("data", "prepare", *words, "--save-as", "bad", *more)
        assert r"\x1b[2J" in said.err
        assert_plain(said)
    broken.write_bytes(whole)
    picture = str(next(photos.glob("val/*/*")))
    commands = [
        ["data", "prepare", *words, "--save-as", "tiny"],
        ["data", "prepare", *words, "--save-as", "listed", "--layout", "files"],
        ["data", "list"],
        ["data", "info", "tiny"],
        ["data", "info", "listed"],
        ["data", "verify", "listed"],
        ["train", *tiny_words, "train.max_steps=1", "run.name=r"],
        ["eval", "r"],
        ["eval", "r", "--json"],
        ["predict", "r", picture],
        ["predict", "r", str(photos / "val")],
        ["export", "r", "--to", "safetensors", "--output", str(tmp_path / "model")],
        ["runs", "show", "r"],
        ["runs", "report", "r", "--output", str(tmp_path / "report.html")],
    ]
    said = {}
    for command in commands:
        said[" ".join(command[:2])] = found = neuscale(*command)
        assert found.code == 0, (command, found.err)
        assert_plain(found)
    assert re.search(SHOWN, said["data info"].out)
    assert re.search(SHOWN, said["predict r"].out)
    assert json.loads(said["eval r"].out)["per_class"].keys() == set(CLASSES), "programs get the names"
    for file in ("model/README.md", "report.html"):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", (tmp_path / file).read_text()), file


def texts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all strings inside `value`."""
    if isinstance(value, str):
        return [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in pairs for found in texts(item, (*path, key))]


def test_texts_of_a_manifest(neuscale: Command, done: Path, runs: Path, tmp_path: Path) -> None:
    """Control sequences are added to every string that the schema leaves free, except in `config`."""
    shutil.copytree(done, runs / "other")
    manifest = read_manifest(done / "manifest.json")
    changed = 0
    for path in texts(manifest):
        inner, *_ = [manifest]
        for key in path[:-1]:
            inner = inner[key]
        before, inner[path[-1]] = inner[path[-1]], f"{inner[path[-1]]}{TITLE}{CLEAR}"
        write_manifest(done / "manifest.json", manifest)
        if read_manifest(done / "manifest.json") and path[0] != "config":
            changed += 1
        else:
            inner[path[-1]] = before
    write_manifest(done / "manifest.json", manifest)
    assert changed > 20
    for command in (
        ["runs", "list"],
        ["runs", "show", "done"],
        ["runs", "compare", "done", "other"],
        ["runs", "report", "done", "--output", str(tmp_path / "page.html")],
        ["runs", "prune", "done"],
        ["runs", "replay", "done"],
    ):
        said = neuscale(*command)
        assert_plain(said)
    assert "\x1b" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("name", ["../\x1b[2Jx.png", "a\x1b[2J/../../x.png", "\x1b[2J" * 40 + "a" * 300])
def test_names_in_an_archive_that_is_refused(neuscale: Command, tmp_path: Path, name: str) -> None:
    path = tmp_path / "\x1b[2J.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"")
    said = neuscale("data", "prepare", "image_folder", "--source", str(path), "--save-as", "x")
    assert said.code == 1 and r"\x1b[2J" in said.err
    assert_plain(said)
