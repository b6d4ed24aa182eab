"""All numbers on a run's report page equal those of the run, its curves and its evaluation."""

import hashlib
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from neuscale.analysis import report
from neuscale.analysis.report import write_report
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.progress import Silent
from neuscale.runs.evaluation_file import store_evaluation

from .conftest import TOP1, RunWriter, manifest_of, train_lines, val_lines
from .test_charts import assert_close, read_back

CLASSES = ["cat", "dog", "owl", "<ant>"]
# Rows are true classes. Of 10 cats, 3 are predicted as dogs, 2 as owls; all 5 dogs as owls; no owls.
CONFUSION = torch.tensor([[5, 3, 2, 0], [0, 0, 5, 0], [0, 0, 0, 0], [1, 0, 0, 1599]])
NOTHING = Calibration([], [], [])


def evaluation(confusion: torch.Tensor) -> Evaluation:
    return Evaluation(0.4567, 0.9876, 1.23456, int(confusion.sum()), confusion, NOTHING)


def page_of(run: Any, path: Path) -> str:
    notes = write_report(run, path, None, Silent())
    assert len(notes) == 1, "without its data there are no images"
    assert notes[0].startswith("Without images: ")
    return path.read_text()


def rows(html: str, table: str) -> list[list[str]]:
    """The cells of the table that begins with `table`, as text."""
    text = html.partition(table)[2].partition("</table>")[0]
    cells = [re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row, re.DOTALL) for row in text.split("<tr>")[1:]]
    return [[unescape(re.sub(r"<.*?>", "", cell)) for cell in row] for row in cells]


def numbers(html: str) -> list[tuple[str, str]]:
    """(label, value) of the numbers at the top."""
    found = re.findall(r'<div><b>(.*?)</b><span class="soft">(.*?)</span></div>', html)
    return [(label, value) for value, label in found]


def charts(html: str) -> dict[str, str]:
    """Charts by title: SVG and legend."""
    found = re.findall(
        r'<div class="card"><h3>([^<]*)</h3>(<svg viewBox.*?</svg>.*?)</div>\n', html, re.DOTALL
    )
    return dict(found)


@pytest.fixture
def page(write_run: RunWriter, tmp_path: Path) -> str:
    run = write_run("p&ts", experiment="vit", error="no <memory>", status="failed")
    store_evaluation(run.path, 2025, CLASSES, evaluation(CONFUSION))
    return page_of(run, tmp_path / "new" / "page.html")


def test_the_numbers_at_the_top(page: str) -> None:
    assert numbers(page) == [
        ("top-1", "45.67%"),
        ("loss", "1.2346"),
        ("balanced accuracy", "49.98%"),
        ("macro-F1", "40.62%"),
        ("of training", "1 h 2 min"),
        ("images a second", "12,346"),
        ("steps", "25"),
    ]
    assert '<p class="soft">swin on pets, experiment vit, seed 7: failed</p>' in page
    assert '<p class="note">It failed: no &lt;memory&gt;</p>' in page
    assert '<p class="soft">After step 2,025, as the run stored it.</p>' in page
    assert "<h1>p&amp;ts</h1>" in page


def test_the_worst_class_is_first_with_what_it_is_most_often_taken_for(page: str) -> None:
    assert "Accuracy of each class, the worst first" in page
    assert rows(page, '<table class="bars">') == [
        ["dog", "", "0.0%", "5 images", "5 taken for owl"],
        ["cat", "", "50.0%", "10 images", "3 taken for dog"],
        ["<ant>", "", "99.9%", "1,600 images", "1 taken for cat"],
        ["owl", "", "no images", "0 images", ""],
    ]
    widths = [float(width) for width in re.findall(r'class="bar" style="width: ([\d.]+)%"', page)]
    assert widths == [0.0, 50.0, 99.9, 0.0]


def test_the_matrix_of_the_page_has_true_rows(page: str) -> None:
    titles = {unescape(title) for title in re.findall(r"<title>(.*?)</title></rect>", page)}
    assert titles == {
        "cat: 5 of 10 right",
        "cat taken for dog: 3 of 10",
        "cat taken for owl: 2 of 10",
        "dog taken for owl: 5 of 5",
        "<ant> taken for cat: 1 of 1,600",
        "<ant>: 1,599 of 1,600 right",
    }


def test_every_curve_is_that_of_its_title(page: str) -> None:
    points = train_lines()
    drawn = {title: read_back(svg) for title, svg in charts(page).items()}
    expected = {
        "Loss": "loss",
        "Top-1": "accuracy",
        "Learning rate": "lr",
        "Throughput, images a second": "images_per_second",
        "Share of time spent waiting for data": "data_wait",
        "Memory, GB": "memory_gb",
    }
    assert list(drawn) == list(expected)
    for title, name in expected.items():
        assert_close(drawn[title].curves["a"], [(p["step"], p[name]) for p in points])
    steps = [line["step"] for line in val_lines()]
    for title, values in (("Loss", [2.5 - x for x in TOP1]), ("Top-1", TOP1)):
        assert_close(drawn[title].curves["b"], list(zip(steps, values, strict=True)))
        assert drawn[title].legend == [("a", "training"), ("b", "validation")]
    dots = [title for *_, title in drawn["Top-1"].dots]
    assert dots[1] == "validation, step 10: 75.00%"
    assert [title for *_, title in drawn["Loss"].dots][-1] == "validation, step 25: 2.125"
    assert charts(page)["Share of time spent waiting for data"].count("%</text>") > 2


def test_the_facts_are_the_manifests(page: str) -> None:
    assert dict(rows(page, "<h2>How it was made</h2>")) == {
        "command": "neuscale train 'run.name=a b'",
        "started, ended": "2026-11-21T12:34:56+00:00, 2026-11-21T13:45:07+00:00",
        "data": "pets, fingerprint " + "f" * 64,
        "code": "neuscale 1.2.3, cccccccccccc with changes (55555555)",
        "weights": "sha256 " + "e" * 64,
        "torch": "2.15.0, Python 3.11.7",
        "lock": "sha256 " + "1" * 64,
        "native ops": "fused",
        "image": "neuscale:9",
        "machine": "2 × NVIDIA H100, 6 threads, bf16",
        "processor": "EPYC",
        "system": "Linux-6.1, host node7",
        "driver": "550.1, CUDA 12.4",
    }
    assert "<summary>4 packages</summary>" in page
    assert 'zstd <span class="soft">1.0</span>' in page
    assert "global_batch_size: 12" in page


def test_a_replay_a_resume_and_a_diff_are_told(write_run: RunWriter, tmp_path: Path) -> None:
    resumed = [{"time": None, "step": step, "changed": []} for step in (1005, 2010)]
    code = {"revision": None, "changed": None, "source_sha256": None}
    run = write_run(
        resumed=resumed,
        replay={
            "of": "dogs",
            "forced": ["train_images.npy"],
            "verdict": "bitwise equal",
            "equal": True,
            "changed": [],
        },
        code={**code, "diff": {"file": "code-12345678.diff", "sha256": "0" * 64}},
        ended=None,
        lines=[],
        result=None,
    )
    html = page_of(run, tmp_path / "page.html")
    facts = dict(rows(html, "<h2>How it was made</h2>"))
    assert facts["resumed at"] == "step 1,005, step 2,010"
    assert facts["started, ended"].endswith(", not recorded")
    assert "A replay of dogs: bitwise equal. It was made with --force, on other data." in html
    assert "<pre>code-12345678.diff cannot be read (No such file or directory)</pre>" in html
    assert charts(html) == {}
    assert numbers(html) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("+ a < b", "+ a &lt; b"),
        ("x" * 200_001, "200,001 characters: see code-12345678.diff"),
    ],
)
def test_the_recorded_patch_is_shown(write_run: RunWriter, tmp_path: Path, text: str, shown: str) -> None:
    sha = hashlib.sha256(text.encode()).hexdigest()
    code = {**manifest_of("pets")["code"], "diff": {"file": "code-12345678.diff", "sha256": sha}}
    run = write_run(code=code, lines=[])
    (run.path / "code.diff").write_text("another one")
    (run.path / "code-12345678.diff").write_text(text)
    assert f"<pre>{shown}</pre>" in page_of(run, tmp_path / "page.html")


def many(count: int) -> torch.Tensor:
    """Confusion matrix with 100 images per class: `i` of class i are right, the others in the next class."""
    confusion = torch.zeros(count, count, dtype=torch.int64)
    for i in range(count):
        confusion[i, i], confusion[i, (i + 1) % count] = i, 100 - i
    return confusion


def test_with_many_classes_the_worst_are_listed_and_top5_is_told(
    write_run: RunWriter, tmp_path: Path
) -> None:
    run = write_run()
    names = [f"c{i}" for i in range(45)]
    store_evaluation(run.path, 25, names, evaluation(many(45)))
    html = page_of(run, tmp_path / "page.html")
    assert numbers(html)[:3] == [("top-1", "45.67%"), ("top-5", "98.76%"), ("loss", "1.2346")]
    assert "Accuracy of the worst 40 of 45 classes" in html
    bars = rows(html, '<table class="bars">')
    assert [row[0] for row in bars] == names[:40]
    assert bars[7] == ["c7", "", "7.0%", "100 images", "93 taken for c8"]
    assert 'alt="confusion matrix"' in html
    assert "<rect" not in html


@pytest.mark.parametrize(("count", "drawn"), [(report.MOST_CELLS, True), (report.MOST_CELLS + 1, False)])
def test_a_matrix_is_drawn_up_to_a_size(
    write_run: RunWriter, tmp_path: Path, count: int, drawn: bool
) -> None:
    run = write_run()
    store_evaluation(run.path, 25, [f"c{i}" for i in range(count)], evaluation(many(count)))
    assert ("<rect" in page_of(run, tmp_path / "page.html")) == drawn


def test_the_command_says_where_the_page_is_and_how_large(
    neuscale: Callable[..., Any], write_run: RunWriter, tmp_path: Path
) -> None:
    run = write_run(lines=[])
    said = neuscale("runs", "report", "pets")
    assert said.code == 0
    size = (run.path / "report.html").stat().st_size
    assert said.out.split() == [str(run.path / "report.html"), f"({round(size / 1000)}", "kB)"]
    assert neuscale("runs", "report", "pets", "--output", str(tmp_path / "p.html")).code == 0
    assert (tmp_path / "p.html").exists()
