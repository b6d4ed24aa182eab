"""The report shows the worst images and the most confused pairs, each with its own image and labels."""

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from neuscale.analysis import report_figures as report_images
from neuscale.analysis.report import write_report
from neuscale.analysis.report_figures import confused_pairs, confusion_picture, picture_source, seen_images
from neuscale.errors import UsageError
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.inference.predict import Predictions
from neuscale.progress import Silent

from .conftest import RunWriter, manifest_of

CLASSES = ["cat", "dog", "owl"]
# True class, predicted class, confidence and loss of eight images; image i has the grey value 10 i.
SAID = [
    (0, 0, 0.9, 0.1),
    (0, 1, 0.5, 2.0),
    (0, 1, 0.8, 4.0),
    (0, 1, 0.6, 3.0),
    (1, 2, 0.7, 5.0),
    (1, 1, 0.99, 0.01),
    (2, 1, 0.55, 2.5),
    (2, 1, 0.75, 2.25),
]


def decoded(source: str) -> Image.Image:
    kind, _, data = source.partition(";base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{(picture.format or '').lower()}"
    return picture


def predictions() -> Predictions:
    labels, predicted = (torch.tensor([row[i] for row in SAID]) for i in (0, 1))
    confidence, loss = (torch.tensor([row[i] for row in SAID]) for i in (2, 3))
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for true, taken_for, *_ in SAID:
        confusion[true, taken_for] += 1
    evaluation = Evaluation(0.25, 1.0, 1.5, 8, confusion, Calibration([], [], []))
    return Predictions(labels, predicted, confidence, loss, torch.empty(0), evaluation)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Fake restored run whose predictions are SAID; images are 5 pixels high and 7 wide."""

    def image(split: str, sample: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        assert split == "val"
        return np.full((3, 5, 7), 10 * sample, dtype=np.uint8)

    meta = SimpleNamespace(
        name="pets", classes=CLASSES, is_recorded_as=lambda f: f == "f" * 64, height=5, width=7
    )
    data = SimpleNamespace(meta=meta, image=image)
    restored = SimpleNamespace(data=data, step=2005, checkpoint=Path("checkpoints/step-00002005"))
    asked: list[str] = []
    monkeypatch.setattr(report_images, "restore", lambda _run, which, *_: asked.append(which) or restored)
    monkeypatch.setattr(report_images, "evaluation_loader", lambda _restored, split: split)
    monkeypatch.setattr(report_images, "predict_split", lambda *_: predictions())
    return SimpleNamespace(restored=restored, asked=asked, meta=meta)


def gray(image: dict[str, str]) -> int:
    """Index of the image that is shown."""
    picture = decoded(image["source"])
    assert picture.size == (7, 5)
    colors = picture.getcolors()
    assert colors is not None
    [(_, color)] = colors
    assert color[0] == color[1] == color[2]
    return int(color[0]) // 10


def test_the_worst_images_are_those_of_the_highest_loss(write_run: RunWriter, trained: Any) -> None:
    found = seen_images(write_run(), manifest_of("pets"), "best", Silent())
    assert [gray(image) for image in found.worst] == [4, 2, 3, 6, 7, 1, 0, 5]
    assert [(one["true"], one["predicted"], one["confidence"]) for one in found.worst[:4]] == [
        ("dog", "owl", "70.0%"),
        ("cat", "dog", "80.0%"),
        ("cat", "dog", "60.0%"),
        ("owl", "dog", "55.0%"),
    ]
    assert found.words == "Of step-00002005, after step 2,005, on 8 validation images."
    assert found.rendering == "pixelated"
    assert trained.asked == ["best"]


def test_pairs_are_true_and_predicted_with_their_own_images_the_surest_first(
    write_run: RunWriter, trained: Any
) -> None:
    found = seen_images(write_run(), manifest_of("pets"), "best", Silent())
    shown = [(p["true"], p["predicted"], p["words"], list(map(gray, p["images"]))) for p in found.pairs]
    assert shown == [
        ("cat", "dog", "3 of 4 images", [2, 3, 1]),
        ("owl", "dog", "2 of 2 images", [7, 6]),
        ("dog", "owl", "1 of 2 images", [4]),
    ]


def test_only_so_many_are_shown(write_run: RunWriter, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("WORST", 3), ("PAIRS", 2), ("OF_A_PAIR", 1)):
        monkeypatch.setattr(report_images, name, most)
    trained.meta.width = 50
    found = seen_images(write_run(), manifest_of("pets"), "last", Silent())
    assert len(found.worst) == 3
    assert [len(pair["images"]) for pair in found.pairs] == [1, 1]
    assert found.rendering == "auto", "larger images are not shown in blocks"
    assert trained.asked == ["last"]


def test_the_page_says_of_each_image_what_it_is_and_what_it_was_taken_for(
    write_run: RunWriter, trained: Any, tmp_path: Path
) -> None:
    assert write_report(write_run(), tmp_path / "page.html", None, Silent()) == []
    assert trained.asked == ["best"]
    html = (tmp_path / "page.html").read_text()
    worst = html.partition("<h2>Worst images</h2>")[2].partition("<h2>")[0]
    found = re.findall(r'src="(.*?)".*?<b>(.*?)</b><br>taken for (.*?), (.*?)</figcaption>', worst, re.DOTALL)
    assert [(gray({"source": source}), *words) for source, *words in found][:2] == [
        (4, "dog", "owl", "70.0%"),
        (2, "cat", "dog", "80.0%"),
    ]
    pairs = html.partition("<h2>Most confused</h2>")[2].partition("<h2>")[0]
    heads = re.findall(r'<h3>(.*?) taken for (.*?)\n<span class="soft">(.*?)</span>', pairs)
    assert heads[:2] == [("cat", "dog", "3 of 4 images"), ("owl", "dog", "2 of 2 images")]
    assert "25.00%" in html


def test_other_data_are_refused_and_a_file_of_weights_has_no_step(write_run: RunWriter, trained: Any) -> None:
    run, manifest = write_run(), manifest_of("pets")
    trained.restored.step = None
    found = seen_images(run, manifest, "x.safetensors", Silent())
    assert found.words == "Of step-00002005, on 8 validation images."
    trained.meta.is_recorded_as = lambda _: False
    with pytest.raises(UsageError, match="other data"):
        seen_images(run, manifest, "best", Silent())


def test_the_most_frequent_mistakes_are_named_by_row_and_column() -> None:
    confusion = torch.tensor([[100, 3, 0, 1], [9, 50, 0, 0], [0, 7, 0, 0], [4, 2, 5, 1]])
    assert confused_pairs(confusion) == [
        (1, 0, 9, 59),
        (2, 1, 7, 7),
        (3, 2, 5, 12),
        (3, 0, 4, 12),
        (0, 1, 3, 104),
        (3, 1, 2, 12),
    ]
    assert confused_pairs(torch.diag(torch.tensor([3, 4]))) == []
    assert int(confusion[0, 0]) == 100, "the matrix is left as it was"


def test_an_image_is_shown_pixel_by_pixel_and_a_large_one_smaller() -> None:
    pixels = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
    shown = decoded(picture_source(pixels))
    assert shown.format == "PNG"
    assert np.array_equal(np.asarray(shown), pixels.transpose(1, 2, 0))
    one = decoded(picture_source(pixels[:1]))
    assert (one.mode, one.size) == ("L", (6, 4))
    assert np.array_equal(np.asarray(one), pixels[0])
    large = decoded(picture_source(np.zeros((3, 100, 200), np.uint8)))
    assert (large.format, large.size) == ("JPEG", (96, 48))


def test_a_large_matrix_is_as_dark_as_the_share_of_its_row() -> None:
    confusion = torch.tensor([[1, 3, 0], [0, 0, 0], [0, 16, 84]])
    html = confusion_picture(confusion)
    source = re.search(r'src="(.*?)"', html)
    assert source is not None
    picture = np.asarray(decoded(source[1]))
    assert picture.shape == (3, 3, 4)
    shares = np.array([[0.25, 0.75, 0], [0, 0, 0], [0, 0.16, 0.84]])
    assert np.array_equal(picture[..., 3], np.round(255 * np.sqrt(shares)))
    assert (picture[..., :3] == report_images.BLUE)[picture[..., 3] > 0].all()
