"""Fakes for the functions that the commands on results and data call."""

import types
from pathlib import Path
from typing import Any

import torch

from neuscale.analysis.compare import Comparison
from neuscale.analysis.equality import Verdict
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation

PATH = Path("some/path")


def stand_ins() -> dict[str, Any]:
    run = types.SimpleNamespace(
        name="some", path=Path("some"), argument="some", manifest_file=Path("no"), checkpoints=Path("no")
    )
    meta = types.SimpleNamespace(
        name="pets",
        title="Pets",
        classes=["a", "b", "c", "d"],
        num_classes=4,
        splits=["train", "val"],
        counts={"train": 9, "val": 2},
        channels=3,
        height=8,
        width=6,
        mean=[],
        std=[],
        fingerprint="f",
        source={},
        licence="",
    )
    data = types.SimpleNamespace(
        meta=meta, folder=Path("some"), verify=lambda _progress: [], class_counts=lambda _split: [1, 2, 3, 4]
    )
    evaluation = Evaluation(0.5, 0.5, 1.0, 2, torch.zeros(4, 4), Calibration([0], [0.0], [0]))
    evaluated = types.SimpleNamespace(is_main=True, evaluation=evaluation)
    seen = types.SimpleNamespace(file=Path("image.png"), top=[("a", 1.0)])
    record = {
        "model": "m",
        "checkpoint": "c",
        "weights": "raw",
        "metrics": {"top1": 0.5},
        "check": {"max_abs_difference": 0.0, "images": 3},
        "several_labels": False,
    }
    exported = types.SimpleNamespace(folder=Path("some"), file=Path("model.pt2"), record=record)
    removal = types.SimpleNamespace(path=PATH, reason="spare", size=7)
    replayed = types.SimpleNamespace(run=run, verdict=Verdict(True, "equal"), forced=[], changed=[])
    manifest: dict[str, Any] = {"resumed": []}
    return {
        "neuscale.runs.folder.find_run": lambda name: run if name != "mine" else "some",
        "neuscale.runs.folder.all_runs": ["every", "run"],
        "neuscale.distributed.launch.launch": 0,
        "neuscale.hardware.check_gpus": None,
        "neuscale.cli.evaluation_report.print_evaluation": None,
        "neuscale.cli.evaluation_report.show_evaluation": None,
        "neuscale.evaluation.calibration.save_reliability_diagram": None,
        "neuscale.inference.evaluate_run.evaluate_run": evaluated,
        "neuscale.cli.console.print_json": None,
        "neuscale.data.datasets.sample_grid": None,
        "neuscale.pictures.save_picture": None,
        "neuscale.inference.predict.find_images": lambda paths: paths,
        "neuscale.inference.predict.predict": [seen],
        "neuscale.inference.predict.write_csv": lambda predictions, **_: len(list(predictions)),
        "neuscale.inference.predict.prediction_grid": None,
        "neuscale.inference.restore.restore": types.SimpleNamespace(
            data=data, several_labels=False, device=torch.device("cpu")
        ),
        "neuscale.distributed.accelerator.check_device": None,
        "neuscale.runs.differences.check_same_data": None,
        "neuscale.cli.predict._print_json": None,
        "neuscale.cli.predict._show_table": None,
        "neuscale.inference.export.export": exported,
        "neuscale.data.prepare.prepare": data,
        "neuscale.data.formats.write_image_list.list_images": data,
        "neuscale.data.formats.write_image_tree.write_image_tree": Path("tree"),
        "neuscale.data.datasets.open_prepared": data,
        "neuscale.cli.data_info._show_info": None,
        "neuscale.analysis.data_check.check_data": types.SimpleNamespace(),
        "neuscale.analysis.data_check.as_json": {},
        "neuscale.analysis.data_check.store_check": None,
        "neuscale.analysis.data_check_page.write_check_page": None,
        "neuscale.cli.data_check._show": None,
        "neuscale.data.staging.stage": data,
        "neuscale.analysis.listing.run_rows": [],
        "neuscale.slurm.jobs.with_jobs": [],
        "neuscale.analysis.listing.sorted_rows": [],
        "neuscale.analysis.listing.run_row": types.SimpleNamespace(state="finished"),
        "neuscale.runs.manifest.load_manifest": manifest,
        "neuscale.runs.folder.checkpoint_paths": [],
        "neuscale.runs.folder.best_checkpoint": None,
        "neuscale.cli.runs_show._show": None,
        "neuscale.cli.runs_show._show_comparison": None,
        "neuscale.analysis.compare.compare_runs": Comparison([], {}, {}, {}),
        "neuscale.analysis.equality.compare_results": None,
        "neuscale.analysis.compare.save_curves": None,
        "neuscale.analysis.replay.replay": replayed,
        "neuscale.analysis.report.write_report": [],
        "neuscale.analysis.prune.removals": [removal],
        "neuscale.analysis.prune.remove": None,
    }
