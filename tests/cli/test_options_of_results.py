"""Every option of the commands that read runs and data reaches the argument that it sets."""

from pathlib import Path

import pytest

from .fakes import PATH, stand_ins
from .options import CALLED, NOT_CALLED, Callees, Option, commands, options_of

BASE = {
    "eval": ["eval", "some"],
    "predict": ["predict", "some", "image.png"],
    "export": ["export", "some", "--to", "torch"],
    "data list": ["data", "list"],
    "data prepare": ["data", "prepare", "cifar10"],
    "data verify": ["data", "verify", "pets"],
    "data info": ["data", "info", "pets"],
    "data check": ["data", "check", "."],
    "data stage": ["data", "stage", "pets"],
    "runs list": ["runs", "list"],
    "runs show": ["runs", "show", "some"],
    "runs compare": ["runs", "compare", "one", "other"],
    "runs replay": ["runs", "replay", "some"],
    "runs report": ["runs", "report", "some"],
    "runs prune": ["runs", "prune"],
}
AS_JSON = Option(["--json"], "print_json", CALLED, NOT_CALLED)
OPTIONS: dict[str, list[Option]] = {
    "eval": [
        Option(["--checkpoint", "last"], "evaluate_run.checkpoint", "last", "best"),
        Option(["--split", "train"], "evaluate_run.split", "train", "val"),
        Option(["--split", "train"], "show_evaluation.split", "train", "val"),
        Option(["--weights", "raw"], "evaluate_run.weights", "raw", "auto"),
        Option(["--tta", "flip"], "evaluate_run.extras.flip", True, False),
        Option(["--corruptions"], "evaluate_run.extras.corruptions", True, False),
        Option(["--latency", "1,8,64"], "evaluate_run.extras.latency", (1, 8, 64), ()),
        Option(["--reliability", str(PATH)], "save_reliability_diagram.path", PATH, NOT_CALLED),
        Option(["--limit", "17"], "evaluate_run.extras.limit", 17, None),
        Option(["--reliability", str(PATH)], "evaluate_run.extras.reliability", True, False),
        Option(["--gpus", "0"], "evaluate_run.device", "cpu", None),
        Option(["--gpus", "1"], "evaluate_run.device", "cuda", None),
        Option(["--gpus", "3"], "launch.processes", 3, NOT_CALLED),
        Option(["--gpus", "3"], "check_gpus.wanted", 3, NOT_CALLED),
        Option(["--processes", "1"], "evaluate_run.device", "cpu", None),
        Option(["--processes", "5"], "launch.processes", 5, NOT_CALLED),
        Option(["--json"], "print_evaluation", CALLED, NOT_CALLED),
        Option(["--json"], "show_evaluation", NOT_CALLED, CALLED),
    ],
    "predict": [
        Option(["--checkpoint", "last"], "restore.checkpoint", "last", "best"),
        Option(["--weights", "ema"], "restore.weights", "ema", "auto"),
        Option(["--top", "2"], "predict.top", 2, 3),
        Option(["--top", "2", "--csv", str(PATH)], "write_csv.top", 2, NOT_CALLED),
        Option(["--top", "9", "--csv", str(PATH)], "write_csv.top", 4, NOT_CALLED),
        Option(["--device", "cpu"], "restore.device", "cpu", None),
        Option(["--device", "cpu"], "check_device.device", "cpu", NOT_CALLED),
        Option(["--csv", str(PATH)], "write_csv.path", PATH, NOT_CALLED),
        Option(["--csv", str(PATH)], "_show_table", NOT_CALLED, CALLED),
        Option(["--picture", str(PATH)], "save_picture.path", PATH, NOT_CALLED),
        Option(["--json"], "_print_json.picture", None, NOT_CALLED),
        Option(["--json"], "_show_table", NOT_CALLED, CALLED),
        Option(
            ["other.png"],
            "find_images.paths",
            [Path("image.png"), Path("other.png")],
            [Path("image.png")],
        ),
    ],
    "export": [
        Option(["--to", "onnx"], "export.kind", "onnx", "torch"),
        Option(["--output", str(PATH)], "export.options.output", PATH, None),
        Option(["--checkpoint", "last"], "export.options.checkpoint", "last", "best"),
        Option(["--weights", "raw"], "export.options.weights", "raw", "auto"),
        Option(["--force"], "export.options.force", True, False),
        Option(["--to", "onnx", "--opset", "18"], "export.options.opset", 18, None),
        Option(["--precision", "bf16"], "export.options.precision", "bf16", "fp32"),
        Option(["--max-accuracy-drop", "2"], "export.options.max_accuracy_drop", 2.0, 5.0),
        AS_JSON,
    ],
    "data list": [AS_JSON],
    "data prepare": [
        Option(["--source", str(PATH)], "prepare.source", PATH, None),
        Option(["--size", "48"], "prepare.options.size", 48, None),
        Option(["--size", "48", "--fit", "pad"], "prepare.options.fit", "pad", None),
        Option(["--val-share", "0.25"], "prepare.options.val_share", 0.25, None),
        Option(["--folds", "5", "--fold", "3"], "prepare.options.folds", 5, None),
        Option(["--folds", "5", "--fold", "3"], "prepare.options.fold", 3, None),
        Option(["--val-share", "0.25", "--split-seed", "7"], "prepare.options.split_seed", 7, None),
        Option(["--nested"], "prepare.options.nested", True, None),
        Option(["--no-nested"], "prepare.options.nested", False, None),
        Option(["--labels", "t.csv"], "prepare.options.labels", Path("t.csv"), None),
        Option(["--labels", "t.csv", "--image-column", "a"], "prepare.options.image_column", "a", None),
        Option(["--labels", "t.csv", "--label-column", "b"], "prepare.options.label_column", "b", None),
        Option(["--labels", "t.csv", "--split-column", "c"], "prepare.options.split_column", "c", None),
        Option(["--multi-label"], "prepare.options.multi_label", True, None),
        Option(["--label-separator", "|"], "prepare.options.label_separator", "|", None),
        Option(["--label-columns", "d,e"], "prepare.options.label_columns", "d,e", None),
        Option(["--encoding", "cp932"], "prepare.options.encoding", "cp932", None),
        Option(["--value-range", "16:4095"], "prepare.options.value_range", (16, 4095), None),
        Option(["--save-as", "mine"], "prepare.save_as", "mine", None),
        Option(["--force"], "prepare.force", True, False),
        Option(["--skip-bad"], "prepare.skip_bad", True, False),
        Option(["--layout", "packed"], "prepare.name", "cifar10", "cifar10"),
        Option(["--layout", "files"], "prepare", NOT_CALLED, CALLED),
        Option(["--layout", "files"], "list_images.name", "cifar10", NOT_CALLED),
        Option(["--layout", "files", "--source", str(PATH)], "list_images.source", PATH, NOT_CALLED),
        Option(["--layout", "files", "--size", "48"], "list_images.options.size", 48, NOT_CALLED),
        Option(["--layout", "files", "--save-as", "mine"], "list_images.save_as", "mine", NOT_CALLED),
        Option(["--layout", "files", "--force"], "list_images.force", True, NOT_CALLED),
        Option(["--layout", "files", "--skip-bad"], "list_images.skip_bad", True, NOT_CALLED),
        Option(["--layout", "folder"], "prepare", NOT_CALLED, CALLED),
        Option(["--layout", "folder"], "write_image_tree.name", "cifar10", NOT_CALLED),
        Option(["--layout", "folder", "--source", str(PATH)], "write_image_tree.source", PATH, NOT_CALLED),
        Option(["--layout", "folder", "--save-as", "x"], "write_image_tree.save_as", "x", NOT_CALLED),
        Option(["--layout", "folder", "--nested"], "write_image_tree.options.nested", True, NOT_CALLED),
        Option(["--layout", "folder", "--force"], "write_image_tree.force", True, NOT_CALLED),
        AS_JSON,
    ],
    "data verify": [AS_JSON, Option(["--json"], "open_prepared.name", "pets", "pets")],
    "data info": [
        Option(["--picture", str(PATH)], "save_picture.path", PATH, NOT_CALLED),
        Option(["--json"], "_show_info", NOT_CALLED, CALLED),
        AS_JSON,
    ],
    "data check": [
        Option(["--run", "some"], "find_run.name", "some", NOT_CALLED),
        Option(["--page", str(PATH)], "write_check_page.path", PATH, NOT_CALLED),
        Option(["--json"], "_show", NOT_CALLED, CALLED),
        Option(["--val-share", "0.25"], "prepare.options.val_share", 0.25, None),
        Option(["--nested"], "prepare.options.nested", True, None),
        Option(["--no-nested"], "prepare.options.nested", False, None),
        Option(["--labels", "t.csv"], "prepare.options.labels", Path("t.csv"), None),
        Option(["--labels", "t.csv", "--image-column", "a"], "prepare.options.image_column", "a", None),
        Option(["--labels", "t.csv", "--label-column", "b"], "prepare.options.label_column", "b", None),
        Option(["--labels", "t.csv", "--split-column", "c"], "prepare.options.split_column", "c", None),
        Option(["--multi-label"], "prepare.options.multi_label", True, None),
        Option(["--label-separator", "|"], "prepare.options.label_separator", "|", None),
        Option(["--label-columns", "d,e"], "prepare.options.label_columns", "d,e", None),
        Option(["--encoding", "cp932"], "prepare.options.encoding", "cp932", None),
        Option(["--value-range", "16:4095"], "prepare.options.value_range", (16, 4095), None),
        AS_JSON,
    ],
    "data stage": [Option(["--to", str(PATH)], "stage.to", PATH, None), AS_JSON],
    "runs list": [Option(["--sort", "speed"], "sorted_rows.sort", "speed", "started"), AS_JSON],
    "runs show": [AS_JSON],
    "runs compare": [
        Option(["--png", str(PATH)], "save_curves.path", PATH, NOT_CALLED),
        Option(["--json"], "_show_comparison", NOT_CALLED, CALLED),
        AS_JSON,
    ],
    "runs replay": [
        Option(["--force"], "replay.force", True, False),
        Option(["optim.lr=3"], "replay.overrides", ["optim.lr=3"], []),
        AS_JSON,
    ],
    "runs report": [
        Option(["--output", "page.html"], "write_report.path", Path("page.html"), Path("some/report.html")),
        Option(["--checkpoint", "last"], "write_report.checkpoint", "last", None),
    ],
    "runs prune": [
        Option(["--failed"], "removals.failed", True, False),
        Option(["--yes"], "remove.found.path", PATH, NOT_CALLED),
        Option(["mine"], "removals.runs", ["some"], ["every", "run"]),
        Option(["mine"], "find_run.name", "mine", NOT_CALLED),
        AS_JSON,
    ],
}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_tried(command: str) -> None:
    tried = {word for option in OPTIONS[command] for word in option.words if word.startswith("--")}
    assert tried >= {option.opts[0] for option in options_of(commands()[command])}


@pytest.fixture
def callees(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callees:
    """Fakes for everything that these commands call; the run 'some' is a folder in the current directory."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NEUSCALE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    Path("some").mkdir()
    for name in ("page.html", "some/report.html", "model.pt2"):
        Path(name).touch()
    found = Callees(monkeypatch)
    for where, answer in stand_ins().items():
        found.stand_in(where, answer)
    return found


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_reaches_what_it_names(command: str, callees: Callees) -> None:
    callees.check(BASE[command], OPTIONS[command])


def test_the_processes_of_an_evaluation_are_given_every_option(callees: Callees) -> None:
    """Workers get every option; a lost one would silently change the evaluation."""
    words = ["--checkpoint", "last", "--split", "train", "--weights", "raw", "--tta", "flip", "--corruptions"]
    words += ["--reliability", "page.png", "--limit", "17", "--processes", "3", "--json"]
    plain = ["--checkpoint", "best", "--split", "val", "--weights", "auto", "--tta", "none"]
    without = ["eval", "some", *plain, "--gpus", "2"]
    told = [Option(words, "launch.arguments", ["eval", "some", *words], without)]
    callees.check(["eval", "some", "--gpus", "2"], [])
    assert callees.found("launch.arguments") == told[0].default
    callees.check(["eval", "some"], [told[0]._replace(default=NOT_CALLED)])
