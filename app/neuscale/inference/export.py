"""Export of a trained model to a folder with the model, its record and a card; verified after writing."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from neuscale.config import config_to_yaml
from neuscale.data.catalog import CATALOG
from neuscale.errors import UsageError, UserError
from neuscale.fs import replacing_folder
from neuscale.hardware import available_cores, cpu_name
from neuscale.inference.classifier import FILES, RECORD, Classifier
from neuscale.inference.evaluate_run import evaluate_restored, evaluation_loader
from neuscale.inference.graph_formats import (
    OPSET,
    RUNTIMES,
    check_opset,
    write_onnx,
    write_openvino,
    write_torch,
)
from neuscale.inference.model_card import model_card
from neuscale.inference.quantize import (
    CALIBRATION_IMAGES,
    DTYPES,
    LARGEST_INT8_OPSET,
    HalfPrecision,
    ProductResize,
    check_precision,
    quantize_onnx,
    rounded,
)
from neuscale.inference.restore import Restored, restore
from neuscale.inference.runtimes import check_packages, reloaded
from neuscale.inference.verify import (
    CHECKED_IMAGES,
    compare,
    difference,
    evaluate_file,
    file_size,
    spread_images,
    time_file,
)
from neuscale.models.weights_file import separate_tensors
from neuscale.progress import Progress
from neuscale.runs.differences import check_same_data
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest
from neuscale.training.checkpoint import AVERAGE, open_checkpoint
from neuscale.version import __version__


@dataclass(frozen=True)
class Exported:
    """An exported model; `record` is the content of its model.json."""

    folder: Path
    file: Path
    record: dict[str, Any]


def check_output(folder: Path, force: bool) -> None:
    """Raise UsageError if `folder` has content that an export must not replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / RECORD).is_file():
        raise UsageError(f"{folder}: exists and is not an exported model.", "Choose another `output`.")
    if not force:
        raise UsageError(
            f"{folder}: already holds an exported model.",
            "Replace it with `force`, or choose another `output`.",
        )


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    `output`: None for `export/KIND` in the run folder, or `export/KIND-PRECISION` if the precision is not
    fp32. `opset`: ONNX operator set; None for OPSET. `max_accuracy_drop`: largest accepted loss of accuracy
    in percentage points for a precision below fp32. `force`: replace an existing exported model.
    """

    output: Path | None = None
    checkpoint: str = "best"
    weights: str = "auto"
    force: bool = False
    opset: int | None = None
    precision: str = "fp32"
    max_accuracy_drop: float = 5.0


def export(run: RunFolder, kind: str, options: ExportOptions, progress: Progress) -> Exported:
    """Write the model of `run` to a folder as "safetensors", "torch", "onnx" or "openvino".

    The folder appears only after the model has been read back and checked: in fp32 its logits are compared
    with the model's, in a lower precision it is evaluated on the validation split. Raises the errors of
    `restore`, UsageError for invalid options or other data than in training, and UserError if the model
    cannot be exported, the logits differ or the accuracy drops too far.
    """
    precision = options.precision
    name = kind if precision == "fp32" else f"{kind}-{precision}"
    folder = options.output if options.output is not None else run.path / "export" / name
    check_output(folder, options.force)
    check_precision(kind, precision)
    check_packages(kind)
    graph = kind in ("onnx", "openvino")
    opset = options.opset if options.opset is not None else OPSET
    if graph:
        check_opset(opset, LARGEST_INT8_OPSET if precision.startswith("int8") else max(RUNTIMES))
    elif options.opset is not None:
        raise UsageError(f"`opset` means nothing for {kind}.", "Remove it.")
    restored = restore(run, options.checkpoint, options.weights, "cpu", progress, stage=False, eager=True)
    check_same_data(restored.data, run)
    classifier = Classifier(restored.model, restored.preprocessing, restored.data.meta.classes).eval()
    record = {**_record(restored, kind, _metrics(restored, progress)), "precision": precision}
    if graph:
        record["opset"], record["onnxruntime"] = opset, RUNTIMES[opset]
    images = spread_images(restored, "val", CHECKED_IMAGES)
    calibration = spread_images(restored, "train", CALIBRATION_IMAGES) if precision == "int8-static" else None
    with replacing_folder(folder) as partial:
        # Reading the model back needs the record; it is written again, complete, after the comparison.
        (partial / RECORD).write_text(json.dumps(record), encoding="utf-8")
        _write_model(classifier, _example(images), kind, precision, partial, record, calibration)
        if precision == "fp32":
            record["check"] = compare(classifier, images, kind, partial)
        else:
            found = difference(classifier, images, reloaded(kind, partial), FILES[kind])
            record["check"] = {"images": len(images), "max_abs_difference": found}
            record["measured"] = _measured(restored, classifier, images, kind, partial, record, progress)
            _check_accuracy(record, options.max_accuracy_drop)
        (partial / RECORD).write_text(
            json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (partial / "README.md").write_text(model_card(kind, record), encoding="utf-8")
    return Exported(folder, folder / FILES[kind], record)


def _example(images: Tensor) -> Tensor:
    """Two images: a graph traced with one would take no other batch."""
    return images[torch.arange(2) % len(images)]


def _write_model(
    classifier: Classifier,
    example: Tensor,
    kind: str,
    precision: str,
    folder: Path,
    record: dict[str, Any],
    calibration: Tensor | None,
) -> None:
    """Write the model file, or files, into `folder`."""
    path = folder / FILES[kind]
    if kind == "safetensors":
        state = separate_tensors(classifier.model.state_dict())
        # save_file would create a file that only its owner can read
        path.write_bytes(save(rounded(state, precision), metadata={"format": "pt"}))
        return
    # OpenVINO takes an fp32 graph and stores its weights in fp16; the other formats compute in fp16 or bf16.
    half = precision in DTYPES and kind != "openvino"
    rounded(classifier.model.state_dict(), precision)  # refuses what is beyond its range
    model = HalfPrecision(classifier, DTYPES[precision]).eval() if half else classifier
    if kind == "openvino" and classifier.preprocessing.resizes:
        model = ProductResize(classifier).eval()
    if kind == "torch":
        write_torch(model, example, path, record)
        return
    quantised = precision.startswith("int8")
    if kind == "onnx" and not quantised:
        write_onnx(model, example, path, record)
        return
    with TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        graph = Path(scratch, "graph.onnx")
        write_onnx(model, example, graph, record)
        if quantised:
            target = path if kind == "onnx" else Path(scratch, "quantised.onnx")
            quantize_onnx(graph, target, calibration)
            graph = target
        if kind == "openvino":
            write_openvino(graph, path, precision)


def _measured(
    restored: Restored,
    classifier: Classifier,
    images: Tensor,
    kind: str,
    folder: Path,
    record: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Validation metrics of the file in `folder`, and its size and latency beside those of an fp32 file."""
    run = reloaded(kind, folder)
    found = {"metrics": evaluate_file(restored, run, progress).scalars(), "bytes": file_size(folder)}
    with TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
        other = Path(scratch)
        _write_model(classifier, _example(images), kind, "fp32", other, record, None)
        found["fp32_bytes"] = file_size(other)
        if kind == "safetensors":  # loaded as fp32, whatever the stored precision
            return found
        found["latency"] = time_file(run, images, progress)
        found["fp32_latency"] = time_file(reloaded(kind, other), images, progress)
    return {**found, "processor": cpu_name(), "cores": available_cores()}


def _check_accuracy(record: dict[str, Any], most: float) -> None:
    """Raise UserError if accuracy drops by more than `most` percentage points, or the loss is not finite."""
    name, metric = ("mAP", "map") if record["several_labels"] else ("top-1", "top1")
    before, after = record["metrics"][metric], record["measured"]["metrics"][metric]
    drop = 100 * (before - after)
    if drop <= most and math.isfinite(record["measured"]["metrics"]["loss"]):
        return
    raise UserError(
        f"in {record['precision']}, {name} falls from {before:.2%} to {after:.2%}, by more than the"
        f" {most:g} percentage points of `max_accuracy_drop`.",
        "Nothing was written; export it in another precision, or raise `max_accuracy_drop`.",
    )


def _metrics(restored: Restored, progress: Progress) -> dict[str, float]:
    """Validation metrics of these weights: from the checkpoint if it has them, else measured now."""
    path = restored.checkpoint
    if path.is_dir() and (restored.weights == "ema") == (path / AVERAGE).exists():
        recorded = open_checkpoint(path).metrics  # of the moving average if there is one
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
