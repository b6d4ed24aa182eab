"""Taking a trained model away: a folder with the model, its record and a card, read back and compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from neuscale.config import config_to_yaml
from neuscale.data.catalog import CATALOG
from neuscale.data.formats.image_list import ListedDataset, read_image_file
from neuscale.errors import UsageError, UserError
from neuscale.fs import replacing_folder
from neuscale.inference.classifier import FILES, RECORD, Classifier, reloaded
from neuscale.inference.evaluate_run import evaluate_restored, evaluation_loader
from neuscale.inference.graph_formats import OPSET, RUNTIMES, check_onnx, check_opset, write_onnx, write_torch
from neuscale.inference.model_card import model_card
from neuscale.inference.restore import Restored, restore
from neuscale.progress import Progress
from neuscale.runs.differences import check_same_data
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest
from neuscale.training.checkpoint import AVERAGE, open_checkpoint
from neuscale.version import __version__

CHECKED_IMAGES = 64


# Of the largest logit: far above what another order of sums makes, far below what changes a class.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """An exported model; `record` is the content of its model.json."""

    folder: Path
    file: Path
    record: dict[str, Any]


def check_output(folder: Path, force: bool) -> None:
    """UsageError where `folder` holds what an export must not replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / RECORD).is_file():
        raise UsageError(f"{folder}: exists and is not an exported model.", "Choose another `output`.")
    if not force:
        raise UsageError(
            f"{folder}: already holds an exported model.",
            "Replace it with `force`, or choose another `output`.",
        )


def export(
    run: RunFolder,
    kind: str,
    output: Path | None,
    checkpoint: str,
    weights: str,
    force: bool,
    progress: Progress,
    opset: int | None = None,
) -> Exported:
    """Write `run`'s model to a folder as "safetensors", "torch" or "onnx".

    `output` None: `export/KIND` in the run folder; `opset`: ONNX's operator set, OPSET where it is None.
    The folder is there when the model in it was read back and gave the same numbers. Arguments and errors are
    those of `restore`; UserError where the model cannot be exported or the numbers differ.
    """
    folder = output if output is not None else run.path / "export" / kind
    check_output(folder, force)
    if kind == "onnx":
        check_onnx()
        check_opset(opset if opset is not None else OPSET)
    elif opset is not None:
        raise UsageError(f"`opset` means nothing for {kind}.", "Remove it.")
    restored = restore(run, checkpoint, weights, "cpu", progress, stage=False, eager=True)
    check_same_data(restored.data, run)
    classifier = Classifier(restored.model, restored.preprocessing, restored.data.meta.classes).eval()
    images = _check_images(restored)
    record = _record(restored, kind, _metrics(restored, progress))
    if kind == "onnx":
        record["opset"] = opset if opset is not None else OPSET
        record["onnxruntime"] = RUNTIMES[record["opset"]]
    with replacing_folder(folder) as partial:
        record = _write(classifier, images, kind, partial, record)
    return Exported(folder, folder / FILES[kind], record)


def _write(
    classifier: Classifier, images: Tensor, kind: str, folder: Path, record: dict[str, Any]
) -> dict[str, Any]:
    """Write model, record and card; returns the record with the outcome of the comparison."""
    path = folder / FILES[kind]
    # The record is there for who reads the model back; it is complete after the comparison.
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    if kind == "safetensors":
        state = {name: value.contiguous() for name, value in classifier.model.state_dict().items()}
        path.write_bytes(save(state, metadata={"format": "pt"}))  # save_file's are for their owner alone
    else:
        write = write_torch if kind == "torch" else write_onnx
        write(classifier, images[:2], path, record)
    record = {**record, "check": _compared(classifier, images, kind, folder)}
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(kind, record), encoding="utf-8")
    return record


@torch.inference_mode()
def _compared(classifier: Classifier, images: Tensor, kind: str, folder: Path) -> dict[str, Any]:
    """The largest difference of a logit between the model and the written file, on batches of three sizes."""
    again = reloaded(kind, folder)
    expected = classifier(images)
    sizes = [1, 3, len(images) - 4] if len(images) > 4 else [1] * len(images)
    found = torch.cat([again(part) for part in torch.split(images, sizes)])
    if found.shape != expected.shape:  # a difference of other shapes would be broadcast, or none at all
        raise UserError(
            f"the exported {FILES[kind]} gives {'×'.join(map(str, found.shape))} numbers instead of"
            f" {'×'.join(map(str, expected.shape))}.",
            "Nothing was written; export it in another format.",
        )
    difference = float((found - expected).abs().max())
    largest = max(1.0, float(expected.abs().max()))
    if not difference <= TOLERANCE * largest:  # NaN as well
        raise UserError(
            f"the exported {FILES[kind]} gives other numbers than the model (by {difference:.2g}).",
            "Nothing was written; export it in another format.",
        )
    return {"images": len(images), "max_abs_difference": difference}


def _check_images(restored: Restored) -> Tensor:
    """Validation images, spread over all of them: uint8 [N, C, H, W]."""
    data, preprocessing = restored.data, restored.preprocessing
    count = data.meta.counts["val"]
    chosen = np.unique(np.linspace(0, count - 1, min(CHECKED_IMAGES, count)).astype(int))
    if isinstance(data, ListedDataset):
        files = [data.files("val")[i] for i in chosen]
        pixels = [preprocessing.decode(read_image_file(data.files_folder, file)) for file in files]
    else:
        pixels = [data.image("val", int(i)) for i in chosen]
    return torch.from_numpy(np.stack(pixels))


def _metrics(restored: Restored, progress: Progress) -> dict[str, float]:
    """The numbers of an evaluation of these weights: as training measured it, else measured now."""
    path = restored.checkpoint
    if path.is_dir() and (restored.weights == "ema") == (path / AVERAGE).exists():
        recorded = open_checkpoint(path).metrics  # of the average where there is one
        wanted = {"map", "loss"} if restored.several_labels else {"top1", "top5", "loss"}
        if wanted <= recorded.keys():
            return recorded
    return evaluate_restored(restored, evaluation_loader(restored, "val"), progress).scalars()


def _record(restored: Restored, kind: str, metrics: dict[str, float]) -> dict[str, Any]:
    meta, preprocessing = restored.data.meta, restored.preprocessing
    entry = CATALOG.get(str(meta.source.get("catalog")))
    code = read_manifest(restored.run.manifest_file).get("code") or {}
    changed = " with changes" if code.get("changed") else ""
    return {
        "format": 1,
        "file": FILES[kind],
        "model": restored.config.model.title,
        "parameters": sum(parameter.numel() for parameter in restored.model.parameters()),
        "input": {"images": ["batch", preprocessing.channels, preprocessing.height, preprocessing.width]},
        "input_dtype": "uint8",
        "output": {"logits": ["batch", meta.num_classes]},
        "classes": meta.classes,
        "several_labels": restored.several_labels,
        "preprocessing": preprocessing.record(),
        "metrics": metrics,
        "data": {
            "name": meta.name,
            "title": meta.title,
            "counts": meta.counts,
            "licence": meta.licence,
            "homepage": entry.homepage if entry is not None else "",
            "fingerprint": meta.fingerprint,
        },
        "run": restored.run.name,
        "checkpoint": restored.checkpoint.name,
        "step": restored.step,
        "weights": restored.weights,
        "revision": f"{code['revision']}{changed}" if code.get("revision") else None,
        "neuscale": __version__,
        "torch": torch.__version__,
        "config": config_to_yaml(restored.run.config()),
    }
