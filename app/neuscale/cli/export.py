"""`neuscale export`."""

from pathlib import Path
from typing import Annotated

import typer

from neuscale.cli.options import AsJson, Checkpoint, RunName, Weights, check_weights
from neuscale.errors import UsageError

FORMATS = ("safetensors", "torch", "onnx", "openvino")


def export_command(
    run: RunName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="safetensors: the weights, for this package; torch: a torch.export program (.pt2);"
            " onnx: for ONNX Runtime; openvino: for OpenVINO. The last three need none of this package."
            " hub:OWNER/NAME: safetensors, uploaded to the Hugging Face Hub.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="A new folder to write; else export/FORMAT in the run's.")
    ] = None,
    checkpoint: Checkpoint = "best",
    weights: Weights = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Replace an exported model that is there; last of all.")
    ] = False,
    opset: Annotated[
        int | None, typer.Option("--opset", help="Of ONNX: its operator set, 18 to 23; 20 if not given.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="fp32; fp16, bf16: half precision; int8: 8-bit integers (onnx); int8-static: the same with"
            " ranges measured on training images (onnx, openvino). What a lower one costs and gains is"
            " measured on the validation images, and on the card.",
        ),
    ] = "fp32",
    max_accuracy_drop: Annotated[
        float,
        typer.Option(
            "--max-accuracy-drop",
            min=0,
            help="Percentage points of accuracy that a lower precision may cost.",
        ),
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Export a trained model: a folder with the model and a card that describes it.

    The model takes bytes, uint8 [batch, channels, height, width], and normalises them itself.
    What was written is read back and compared with the trained model on validation images.
    """
    from neuscale.hub import hub_name, upload_model
    from neuscale.runs.folder import find_run

    repository = hub_name(to)
    if to not in FORMATS and repository is None:
        raise UsageError(f"--to {to}: expected {', '.join(FORMATS)} or hub:OWNER/NAME.")
    if repository is not None and repository.path:
        raise UsageError(f"--to {to}: a model is a whole repository.", f"Remove /{repository.path}.")
    check_weights(weights)
    found = find_run(run)

    from neuscale.cli.console import escape, out, print_json
    from neuscale.cli.progress import create_progress
    from neuscale.inference.export import ExportOptions, export
    from neuscale.inference.verify import file_size

    kind, progress = "safetensors" if repository else to, create_progress()
    # For an upload, an earlier export in the default folder is replaced: it is only a copy.
    again = force or (repository is not None and output is None)
    options = ExportOptions(output, checkpoint, weights, again, opset, precision, max_accuracy_drop)
    exported = export(found, kind, options, progress)
    address = upload_model(exported.folder, repository, progress) if repository is not None else None
    record, check = exported.record, exported.record["check"]
    if as_json:
        shown = {
            "folder": str(exported.folder),
            "path": str(exported.file),
            "bytes": file_size(exported.folder),
        }
        print_json({**shown, **({"address": address} if address else {}), **record})
        return
    name, metric = ("mAP", "map") if record["several_labels"] else ("top-1", "top1")
    out.print(
        f"{escape(record['model'])} of {escape(found.name)}, {escape(record['checkpoint'])}"
        f" ({record['weights']} weights): {name} {record['metrics'][metric]:.2%}"
    )
    if "measured" in record:
        measured = record["measured"]
        before, after = measured["fp32_bytes"] / 1e6, measured["bytes"] / 1e6
        out.print(
            f"In {precision}: {name} {measured['metrics'][metric]:.2%}, {after:.1f} MB"
            f" instead of {before:.1f} MB in fp32."
        )
        for slow, fast in zip(measured.get("fp32_latency", []), measured.get("latency", []), strict=True):
            out.print(
                f"Batches of {slow['batch_size']}: {fast['median_ms']:.2f} ms"
                f" instead of {slow['median_ms']:.2f} ms."
            )
    else:
        out.print(
            f"Read back, it differs by {check['max_abs_difference']:.2g} at most from the trained model,"
            f" on {check['images']} validation images."
        )
    out.print(f"It is {escape(exported.file)}; README.md beside it says how to load it.")
    if address is not None:
        out.print(f"It is at {escape(address)}, too.")
