"""Planted copies, odd images and wrong labels are found, and all other images are not reported."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from conftest import ListeningProgress
from neuscale.analysis.data_check import DataCheck, check_data, store_check
from neuscale.analysis.data_check_page import findings, write_check_page
from neuscale.cli import run as command
from neuscale.data.formats.meta import kept_check
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.prepare import prepare
from neuscale.data.sources.options import SourceOptions
from neuscale.evaluation.mislabelled import suspects
from neuscale.progress import Silent

SIDE = 48


def scene(seed: int) -> Image.Image:
    """Image of random blots of colour, different for each seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 training and 20 validation images of two classes; tests add copies and odd images."""
    folder = tmp_path / "photos"
    for split, count in (("train", 30), ("val", 10)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                save(
                    scene(1000 * label + 100 * (split == "val") + number),
                    folder / split / name / f"{number:02}.png",
                )
    return folder


def checked(folder: Path, root: Path, layout: Callable[..., object] = prepare) -> DataCheck:
    data = layout("image_folder", root=root, source=folder, save_as="x", options=SourceOptions(size=SIDE))
    return check_data(data, None, Silent())


def named(groups: list[list[object]]) -> list[list[str]]:
    return sorted(sorted(image.name for image in group) for group in groups)  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", [prepare, list_images])
def test_tiny_and_huge_files(photos: Path, tmp_path: Path, layout: Callable[..., object]) -> None:
    for name, size in (("narrow", (20, 100)), ("just", (24, 24)), ("large", (4 * SIDE, 4 * SIDE + 1))):
        save(scene(70 + len(name)).resize(size), photos / "val" / "cat" / f"{name}.png")
    sideways = scene(90).resize((200, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(sideways, photos / "train" / "dog" / "sideways.jpg", exif=exif)
    check = checked(photos, tmp_path, layout)
    assert check.tiny is not None and check.huge is not None
    assert [image.name for image in check.tiny] == ["train/dog/sideways.jpg", "val/cat/narrow.png"]
    assert [image.name for image in check.huge] == ["val/cat/large.png"]
    numbers = check.summary()
    assert (numbers["tiny"], numbers["huge"]) == (2, 1)
    assert ("tiny images, enlarged", "2") in findings(check)


def test_sizes_that_are_not_known_or_damaged_are_called_that(photos: Path, tmp_path: Path) -> None:
    data = prepare("image_folder", root=tmp_path, source=photos, save_as="x")
    for content in (b"", b"PK\3\4 no zip", None):
        (data.folder / "image_sizes.npz").write_bytes(content) if content is not None else (
            data.folder / "image_sizes.npz"
        ).unlink()
        check = check_data(data, None, Silent())
        assert check.tiny is None and check.summary()["huge"] is None
        assert ("huge images", "not known") in findings(check)


@pytest.mark.parametrize("layout", [prepare, list_images])
def test_different_images_are_no_copies(photos: Path, tmp_path: Path, layout: Callable[..., object]) -> None:
    check = checked(photos, tmp_path, layout)
    assert (check.equal, check.similar, check.dark, check.bright, check.flat) == ([], [], [], [], [])
    assert check.counts == {name: {"train": 30, "val": 10} for name in ("cat", "dog")}
    assert check.imbalance == 1


@pytest.mark.parametrize("layout", [prepare, list_images])
def test_equal_images_within_and_across_splits_and_classes(
    photos: Path, tmp_path: Path, layout: Callable[..., object]
) -> None:
    save(scene(3), photos / "val" / "cat" / "copy.png")
    save(scene(4), photos / "train" / "dog" / "copy.png")
    save(scene(4), photos / "train" / "dog" / "again.png")
    check = checked(photos, tmp_path, layout)
    assert named(check.equal) == [
        ["train/cat/03.png", "val/cat/copy.png"],
        ["train/cat/04.png", "train/dog/again.png", "train/dog/copy.png"],
    ]
    assert check.similar == []
    numbers = check.summary()
    assert (numbers["groups_across_splits"], numbers["groups_in_several_classes"]) == (1, 1)


def changed(image: Image.Image, how: str) -> Image.Image:
    if how == "compressed":
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=60)
        return Image.open(stream)
    if how == "scaled":
        return image.resize((37, 37), Image.Resampling.BILINEAR)
    if how == "brightened":
        return Image.fromarray((np.asarray(image).astype(int) + 4).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.6))


@pytest.mark.parametrize("how", ["compressed", "scaled", "brightened", "blurred"])
def test_nearly_equal_images(photos: Path, tmp_path: Path, how: str) -> None:
    for number in range(10):
        save(changed(scene(number), how), photos / "val" / "cat" / f"copy{number}.png")
    check = checked(photos, tmp_path)
    assert check.equal == []
    assert named(check.similar) == [[f"train/cat/0{i}.png", f"val/cat/copy{i}.png"] for i in range(10)]


def test_dark_bright_and_flat_images_and_small_classes(photos: Path, tmp_path: Path) -> None:
    for name, color in (("dark", (3, 2, 4)), ("bright", (254, 255, 253)), ("flat", (90, 20, 140))):
        save(Image.new("RGB", (SIDE, SIDE), color), photos / "train" / "cat" / f"{name}.png")
    for number in range(30 - 3):
        (photos / "train" / "dog" / f"{number:02}.png").unlink()
    check = checked(photos, tmp_path)
    assert [[image.name for image in found] for found in (check.dark, check.bright, check.flat)] == [
        [f"train/cat/{name}.png"] for name in ("dark", "bright", "flat")
    ]
    assert check.imbalance == 11 and check.similar == []


def test_findings_go_beside_the_data_and_not_to_others(
    photos: Path, tmp_path: Path, listening: ListeningProgress
) -> None:
    data = prepare("image_folder", root=tmp_path, source=photos, save_as="x")
    check = check_data(data, None, Silent())
    store_check(data, check, listening)
    kept = kept_check(data.folder, data.meta.fingerprint)
    assert kept == json.loads(json.dumps(check.summary()))
    assert kept_check(data.folder, "0" * 64) is None
    again = prepare("image_folder", root=tmp_path, source=photos, save_as="x", force=True)
    assert kept_check(again.folder, again.meta.fingerprint) is None, "made anew, it is to be looked at anew"


def test_the_page_has_the_pictures_of_what_was_found(photos: Path, tmp_path: Path) -> None:
    save(scene(3), photos / "val" / "cat" / "<b>copy.png")
    data = prepare("image_folder", root=tmp_path, source=photos, save_as="x")
    check = check_data(data, None, Silent())
    write_check_page(data, check, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 2 and page.count("data:image/") == 2
    assert "val/cat/&lt;b&gt;copy.png" in page
    for what, count in findings(check):
        assert f"<td>{what}</td><td>{count}</td>" in page


def probabilities_of(
    labels: NDArray[np.int64], classes: int, sure: float, random: np.random.Generator
) -> torch.Tensor:
    noise = torch.from_numpy(random.dirichlet(np.ones(classes), len(labels)))
    return (1 - sure) * noise + sure * torch.nn.functional.one_hot(torch.from_numpy(labels), classes)


def test_wrong_labels_are_found_by_the_published_rule() -> None:
    random = np.random.default_rng(0)
    true = random.integers(0, 5, 2000)
    given = true.copy()
    wrong = random.choice(2000, 100, replace=False)
    given[wrong] = (true[wrong] + random.integers(1, 5, 100)) % 5
    found = suspects(probabilities_of(true, 5, 0.6, random), torch.from_numpy(given))
    samples = {suspect.sample for suspect in found}
    assert len(samples & set(wrong.tolist())) >= 85
    assert len(samples - set(wrong.tolist())) <= 5
    planted = [suspect for suspect in found if suspect.sample in set(wrong.tolist())]
    assert sum(suspect.suggested == true[suspect.sample] for suspect in planted) >= 0.9 * len(planted)
    margins = [suspect.margin for suspect in found]
    assert margins == sorted(margins, reverse=True) and min(margins) > 0


def test_the_threshold_of_a_class_is_the_mean_of_its_own_images() -> None:
    """Thresholds computed by hand: (0.9 + 0.5) / 2 = 0.7 for class 0, (0.8 + 0.2) / 2 = 0.5 for class 1."""
    given = torch.tensor([0, 0, 1, 1])
    probabilities = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.8, 0.2]])
    (found,) = suspects(probabilities, given)
    assert (found.sample, found.suggested) == (3, 0)
    assert found.margin == pytest.approx(0.6)
    assert suspects(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == []


def test_the_command_looks_at_a_folder_without_preparing_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    save(scene(3), photos / "val" / "cat" / "copy.png")
    (photos / "train" / "cat" / "bad.png").write_bytes(b"x")
    assert command(["data", "check", str(photos), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [image["name"] for image in found["equal"][0]] == ["train/cat/03.png", "val/cat/copy.png"]
    assert not (tmp_path / "data").exists()
    assert command(["data", "check", str(photos / "train")]) == 1
    assert "--val-share 0.1 takes a tenth" in " ".join(capsys.readouterr().err.split())
    assert command(["data", "check", str(photos / "train"), "--val-share", "0.1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["dog"] == {"train": 27, "val": 3}
    assert command(["data", "check", str(photos), "--nested", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["dog"] == {"train": 30, "val": 10}
    prepare("image_folder", root=tmp_path / "data", source=photos, save_as="pets", skip_bad=True)
    assert command(["data", "check", "pets", "--nested"]) == 2
    assert "--nested is for a folder or archive, and pets is a prepared" in capsys.readouterr().err
    assert command(["data", "check", "nothing"]) == 1
    assert "not prepared" in capsys.readouterr().err


def test_names_of_packed_images_are_those_of_their_files(photos: Path, tmp_path: Path) -> None:
    data = prepare("image_folder", root=tmp_path, source=photos, save_as="x")
    assert data.names("val") == sorted(str(p.relative_to(photos)) for p in (photos / "val").rglob("*.png"))
    (data.folder / "image_names.txt.gz").write_bytes(b"x")
    assert PackedDataset.open(data.folder).names("val") == []
