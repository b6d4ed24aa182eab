"""The example scripts, unchanged, train a few steps on real images."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from neuscale.data.formats.packed import PackedDataset

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.skipif(
    not os.environ.get("NEUSCALE_TEST_DATA"),
    reason="NEUSCALE_TEST_DATA names no folder with cifar10-jpeg.tar.gz and tiny-imagenet-40.zip",
)


def run(script: str, folder: Path, *words: str) -> str:
    places = {"NEUSCALE_DATA": str(folder / "data"), "NEUSCALE_RUNS": str(folder / "runs")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *words],
        env=os.environ | places,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def images(name: str) -> Path:
    return Path(os.environ["NEUSCALE_TEST_DATA"]) / name


def test_swin_on_cifar10(tmp_path: Path) -> None:
    out = run("swin_cifar10.py", tmp_path, "--source", str(images("cifar10-jpeg.tar.gz")), "--small")
    assert "step     20  val    loss" in out
    assert "airplane" in out and "best top-1" in out


def test_vit_on_tiny_imagenet(tmp_path: Path) -> None:
    words = ["--source", str(images("tiny-imagenet-40.zip")), "--small", "--name", "v"]
    assert "on 2,000 images" in run("vit_tiny_imagenet.py", tmp_path, *words)
    assert "on 2,000 images" in run("vit_tiny_imagenet.py", tmp_path, *words), "it finds its finished run"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["v"]


def test_own_folder(tmp_path: Path) -> None:
    """Two CIFAR-10 classes serve as a user's own images."""
    with tarfile.open(images("cifar10-jpeg.tar.gz")) as tar:
        for member in tar:
            _, split, label, file = (member.name.split("/") + [""] * 3)[:4]
            if label in ("cat", "ship") and file[:2] == "00" and file.endswith(".jpg"):
                target = tmp_path / "pets" / ("val" if split == "test" else split) / label / file
                target.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                target.write_bytes(content.read())
    out = run(
        "own_folder.py", tmp_path, "--source", "pets", "--name", "pets", "--size", "24", "--epochs", "2"
    )
    assert "an image of 'cat' is taken for:" in out
    assert PackedDataset.open(tmp_path / "data" / "packed" / "pets").meta.width == 24
