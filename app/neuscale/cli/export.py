"""`neuscale export`."""

from pathlib import Path
from typing import Annotated

import typer

from neuscale.cli.options import AsJson, Checkpoint, RunName, Weights, check_weights
from neuscale.errors import UsageError

FORMATS = ("safetensors", "torch", "onnx")


def export_command(
    run: RunName,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="safetensors: the weights, for this package; torch: a torch.export program (.pt2);"
            " onnx: for onnxruntime. The last two need none of this package. hub:OWNER/NAME: safetensors,"
            " uploaded to the Hugging Face Hub.",
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
    check_weights(weights)
    found = find_run(run)

    from neuscale.cli.console import escape, out, print_json
    from neuscale.cli.progress import create_progress
    from neuscale.inference.export import export

    kind, progress = "safetensors" if repository else to, create_progress()
    # What was uploaded before is made anew: its folder is a copy.
    again = force or (repository is not None and output is None)
    exported = export(found, kind, output, checkpoint, weights, again, progress, opset)
    address = upload_model(exported.folder, repository, progress) if repository is not None else None
    record, check = exported.record, exported.record["check"]
    if as_json:
        shown = {
            "folder": str(exported.folder),
            "path": str(exported.file),
            "bytes": exported.file.stat().st_size,
        }
        print_json({**shown, **({"address": address} if address else {}), **record})
        return
    name, metric = ("mAP", "map") if record["several_labels"] else ("top-1", "top1")
    out.print(
        f"{escape(record['model'])} of {escape(found.name)}, {escape(record['checkpoint'])}"
        f" ({record['weights']} weights): {name} {record['metrics'][metric]:.2%}"
    )
    out.print(
        f"Read back, it differs by {check['max_abs_difference']:.2g} at most from the trained model,"
        f" on {check['images']} validation images."
    )
    out.print(f"It is {escape(exported.file)}; README.md beside it says how to load it.")
    if address is not None:
        out.print(f"It is at {escape(address)}, too.")
