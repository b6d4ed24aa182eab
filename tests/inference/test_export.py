"""An exported model gives the trained model's results in other programs; it is never written partially."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import nn

from neuscale.inference import export as export_module
from neuscale.inference.classifier import load_exported
from neuscale.inference.runtimes import reloaded
from neuscale.models.weights_file import separate_tensors

from .conftest import RECIPE, Trained

Command = Callable[..., Any]
KINDS = ["safetensors", "torch", "onnx", "openvino"]


def images_and_labels(trained: Trained) -> tuple[torch.Tensor, list[str]]:
    files = trained.val_files
    pixels = [np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files]
    return torch.from_numpy(np.stack(pixels)), [file.parent.name for file in files]


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_the_trained_model_does(
    neuscale: Command, trained: Trained, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "model"
    said = neuscale("export", "done", "--to", kind, "--output", folder, "--weights", "raw", "--json")
    assert said.code == 0, said.err
    record = json.loads((folder / "model.json").read_text())
    assert said.json.items() >= record.items()
    assert record["weights"] == "raw"
    assert record["check"]["images"] == 60 or record["check"]["images"] == 64
    assert 0 <= record["check"]["max_abs_difference"] < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing else is left"

    expected = neuscale("eval", "done", "--weights", "raw", "--json").json
    assert record["metrics"]["top1"] == pytest.approx(expected["top1"], abs=1e-9)
    images, names = images_and_labels(trained)
    with torch.no_grad():
        logits = torch.cat([reloaded(kind, folder)(part) for part in images.split([1, 7, len(images) - 8])])
    right = [record["classes"][int(i)] == name for i, name in zip(logits.argmax(1), names, strict=True)]
    assert np.mean(right) == pytest.approx(expected["top1"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_the_card_runs_where_it_says(
    neuscale: Command, trained: Trained, tmp_path: Path, kind: str
) -> None:
    """The code runs in a process that cannot import the packages that the card calls unnecessary."""
    folder = tmp_path / "model"
    assert neuscale("export", "done", "--to", kind, "--output", folder).code == 0
    card = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) <= 17
    ours = ["neuscale", "neuscale_ops"]
    blocked = {"torch": ours, "onnx": [*ours, "torch"], "openvino": [*ours, "torch"]}.get(kind, [])
    Image.open(trained.val_files[0]).convert("RGB").save(folder / "image.png")
    before = f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", before + code[1]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (image,) = neuscale("predict", "done", trained.val_files[0], "--json").json["images"]
    assert done.stdout.strip() == image["predictions"][0]["class"]
    for line in (
        "Licence of the data: that of your images",
        "global_batch_size: 50",
        "uint8 [batch, 3, 64, 64]",
    ):
        assert line in card


def test_metadata_travels_inside_the_file(neuscale: Command, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    for kind in ("torch", "onnx"):
        assert neuscale("export", "done", "--to", kind, "--output", tmp_path / kind).code == 0
    extra = {"model.json": ""}
    torch.export.load(tmp_path / "torch" / "model.pt2", extra_files=extra)
    inside = json.loads(extra["model.json"])
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    beside = json.loads((tmp_path / "onnx" / "model.json").read_text())
    for name in ("classes", "preprocessing", "metrics"):
        assert inside[name] == beside[name]
        assert json.loads(metadata[name]) == beside[name]
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 3, 64, 64])
    assert (logits.name, logits.shape) == ("logits", ["batch", len(beside["classes"])])


@pytest.mark.parametrize("model", [
    ["model=vit_ti4", "model.patch_size=8", "model.num_layers=1"],
    ["model=torchvision", "model.arch=shufflenet_v2_x0_5", "data.image_size=48"],
], ids=["vit", "torchvision, resized"])  # fmt: skip
def test_other_models(neuscale: Command, trained: Trained, tmp_path: Path, model: list[str]) -> None:
    """Convolutions with BatchNorm, a class token, and images resized in the graph can be exported."""
    recipe = [word for word in RECIPE if not word.startswith("model.")]
    name = f"run-{model[0].partition('=')[2]}"
    assert neuscale("train", *recipe, *model, "train.max_steps=2", f"run.name={name}").code == 0
    for kind in ("torch", "onnx"):
        said = neuscale("export", name, "--to", kind, "--json")
        assert said.code == 0, said.err
        assert Path(said.json["path"]).parent == trained.runs / name / "export" / kind
    shutil.rmtree(trained.runs / name)


def test_a_file_that_gives_other_numbers_is_not_kept(
    neuscale: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter with a wrong operator is simulated by one that does not subtract the mean."""

    def wrong(classifier: nn.Module, *rest: Any) -> None:
        kept = classifier.mean.clone()
        with torch.no_grad():
            classifier.mean.zero_()
            right(classifier, *rest)
            classifier.mean.copy_(kept)

    right = export_module.write_torch
    monkeypatch.setattr(export_module, "write_torch", wrong)
    said = neuscale("export", "done", "--to", "torch", "--output", tmp_path / "model")
    assert said.code == 1
    assert "gives other numbers than the model" in said.words
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_by_accident(neuscale: Command, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    words = ["export", "done", "--to", "safetensors", "--output", folder]
    assert neuscale(*words).code == 0
    said = neuscale(*words)
    assert said.code == 2
    assert "already holds an exported model. Replace it with --force" in said.words
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert neuscale(*words, "--force", "--weights", "raw").code == 0
    assert load_exported(folder).classes
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    said = neuscale("export", "done", "--to", "safetensors", "--output", mine, "--force")
    assert said.code == 2
    assert "exists and is not an exported model" in said.words
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_place_that_cannot_be_written(neuscale: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = neuscale("export", "done", "--to", "safetensors", "--output", tmp_path / "file" / "model")
    assert said.code == 1
    assert "a part of this path is a file" in said.words


def test_what_is_missing_or_misspelt(
    neuscale: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = neuscale("export", "done", "--to", "onix")
    formats = "expected safetensors, torch, onnx, openvino or hub:OWNER/NAME"
    assert (said.code, formats in said.words) == (2, True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = neuscale("export", "done", "--to", "onnx", "--output", tmp_path / "model")
    assert said.code == 2
    assert "onnxruntime is not installed. Install what it needs: pip install 'neuscale[onnx]'" in said.words
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("words", "opset", "runtime"), [([], 20, "1.18"), (["--opset", 18], 18, "1.18")])
def test_the_operator_set_is_the_one_asked_for_and_the_card_names_the_oldest_runtime(
    neuscale: Command, tmp_path: Path, words: list[object], opset: int, runtime: str
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    said = neuscale("export", "done", "--to", "onnx", *words, "--output", tmp_path / "model", "--json")
    assert said.code == 0, said.err
    model = onnx.load(tmp_path / "model" / "model.onnx")
    assert [each.version for each in model.opset_import if not each.domain] == [opset]
    assert model.ir_version <= 10, "what the table of runtimes was found with"
    assert (said.json["opset"], said.json["onnxruntime"]) == (opset, runtime)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"With onnxruntime {runtime} or later (operator set {opset};" in card


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_may_have_any_number_of_images(
    neuscale: Command, trained: Trained, tmp_path: Path, kind: str
) -> None:
    assert neuscale("export", "done", "--to", kind, "--output", tmp_path / "model").code == 0
    model = reloaded(kind, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    shape = record["input"]["images"][1:]
    for count in (1, 2, 7):
        found = model(torch.zeros(count, *shape, dtype=torch.uint8))
        assert tuple(found.shape) == (count, len(record["classes"])), count


def test_an_operator_set_that_is_not_known_is_refused(neuscale: Command, tmp_path: Path) -> None:
    for words, problem in (
        (["--to", "onnx", "--opset", 17], "--opset 17: expected 18 to 23"),
        (["--to", "torch", "--opset", 18], "--opset means nothing for torch"),
    ):
        said = neuscale("export", "done", *words, "--output", tmp_path / "model")
        assert said.code == 2 and problem in said.words
        assert not (tmp_path / "model").exists()


class Tied(nn.Module):
    """Two layers with one weight, stored under two names."""

    def __init__(self, num_classes: int = 10, **_: object) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.second(self.first(images.mean((2, 3)))))
        return logits


def test_tied_weights_are_separate_in_a_file_and_the_same_when_read() -> None:
    """safetensors refuses tensors that share memory; checkpoints and exports are written in it."""
    state = separate_tensors(Tied().state_dict())
    places = {value.untyped_storage().data_ptr() for value in state.values()}
    assert len(places) == len(state) == 6
    other = Tied()
    other.load_state_dict(load(save(state)))
    assert torch.equal(other.first.weight, state["first.weight"])
    assert other.second.weight is other.first.weight


def test_one_validation_image_is_enough(
    neuscale: Command, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is traced with one image would take no other number of them."""
    monkeypatch.setattr(export_module, "CHECKED_IMAGES", 1)
    assert neuscale("export", "done", "--to", "torch", "--output", tmp_path / "model").code == 0
    assert len(reloaded("torch", tmp_path / "model")(torch.zeros(5, 3, 64, 64, dtype=torch.uint8))) == 5
