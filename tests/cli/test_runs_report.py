"""`neuscale runs report` writes one HTML file that opens offline and shows the run's own numbers."""

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed HTML page: its text, embedded pictures, count of each tag, and URLs that it would load."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.pictures: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(path.read_text())
        assert self.open == [], "every element is closed"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "src" and (value or "").startswith("data:"):
                self.pictures.append(value or "")
            elif name in ("src", "href", "srcset", "action"):
                self.loaded.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


def test_the_page_says_what_the_evaluation_says(neuscale: Command, done: Path) -> None:
    said = neuscale("runs", "report", "done")
    assert said.code == 0, said.err
    path = done / "report.html"
    page = Page(path)
    assert page.loaded == []
    assert "url(" not in path.read_text()
    assert path.stat().st_size < 2_000_000
    assert len(page.pictures) >= 5, "the images that it is wrong about"
    assert page.counts["svg"] == 7, "curves and the confusion matrix"
    found = neuscale("eval", "done", "--json").json
    assert f"{found['top1']:.2%} top-1" in page.text
    for name, accuracy in found["per_class"].items():
        assert re.search(rf"{name} {accuracy:.1%} 7 images", page.text), name
    assert "sha256" in page.text
    assert "safetensors" in page.text
    assert "prefers-color-scheme: dark" in path.read_text()


def test_class_names_are_text_and_nothing_else(
    neuscale: Command, build_image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("<script>alert(1)<script>", "Kätzchen & 'co'", 'a"b')
    names = tuple(name.replace("/", "") for name in names)
    tree = build_image_tree(tmp_path / "tree", classes=names, train=6, val=3)
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    model = ["model.embed_dim=8", "model.depths=[1,1]", "model.num_heads=[1,1]", "model.window_size=2"]
    words = ["data=image_folder", "data.name=odd", f"data.source={tree}", "train.global_batch_size=6"]
    words += [*model, "model.patch_size=2", "train.epochs=1", "run.name=odd", "run.device=cpu"]
    assert neuscale("train", *words, "tracking.trackers=[]").code == 0
    assert neuscale("runs", "report", "odd", "--output", str(tmp_path / "page.html")).code == 0
    page = Page(tmp_path / "page.html")
    assert "script" not in page.counts
    for name in names:
        assert name in page.text


def test_without_checkpoints_it_has_what_the_run_stored(neuscale: Command, done: Path) -> None:
    found = neuscale("eval", "done", "--checkpoint", "last", "--json").json
    shutil.rmtree(done / "checkpoints")
    said = neuscale("runs", "report", "done")
    assert said.code == 0
    assert "warning: Without images" in said.words
    assert "has no checkpoint yet" in said.words
    page = Page(done / "report.html")
    assert page.pictures == []
    assert f"{found['top1']:.2%} top-1" in page.text
    for name, accuracy in found["per_class"].items():
        assert re.search(rf"{name} {accuracy:.1%} 7 images", page.text), name


def test_without_its_data_no_images_of_others_are_shown(
    neuscale: Command, done: Path, tmp_path: Path, build_image_tree: Callable[..., Path]
) -> None:
    manifest = (done / "manifest.json").read_text()
    fingerprint = re.search(r'"fingerprint": "(\w+)"', manifest)
    assert fingerprint
    (done / "manifest.json").write_text(manifest.replace(fingerprint[1], "0" * 64))
    said = neuscale("runs", "report", "done")
    assert said.code == 0
    assert "was trained on other data" in said.words
    assert Page(done / "report.html").pictures == []


def test_a_checkpoint_that_is_not_there_is_an_error(neuscale: Command, done: Path) -> None:
    said = neuscale("runs", "report", "done", "--checkpoint", "step-00000099")
    assert said.code == 1
    assert "there is no checkpoint here" in said.words
    assert not (done / "report.html").exists()
