"""Replaced files and new folders survive a power cut once the call has returned."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from durability.power_cut import recorded
from neuscale.analysis.compare import Comparison, save_curves
from neuscale.errors import UserError
from neuscale.evaluation.calibration import Calibration, save_reliability_diagram
from neuscale.fs import make_folder, replacing, write_atomically
from neuscale.inference.predict import Prediction, write_csv
from neuscale.pictures import save_picture

OLD, NEW = "what was there before\n", "something newer, of another length\n"


@pytest.mark.parametrize("older", [None, OLD])
def test_a_file_is_the_old_or_the_new_and_the_new_one_afterwards(older: str | None, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    if older is not None:
        (root / "file").write_text(older)
    with recorded(root) as record:
        write_atomically(root / "file", NEW)
        record.done("written")

    def check(after: Path, done: tuple[str, ...]) -> str:
        file = after / "file"
        found = file.read_text() if file.exists() else None
        assert found == NEW or (found == older and not done)
        return "new" if found == NEW else "old"

    assert record.replay(tmp_path / "after", check).keys() == {"old", "new"}


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(OLD)
    with recorded(tmp_path) as record, pytest.raises(ZeroDivisionError), replacing(tmp_path / "file") as part:
        part.write_text(NEW)
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert {cut.tree["file"] for cut in record.power_cuts()} == {OLD.encode()}


def test_new_folders_stay_with_all_those_above_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with recorded(tmp_path) as record:
        make_folder(tmp_path / "a" / "b" / "c")
        record.done("made")
        make_folder(tmp_path / "a" / "b")
    trees = [cut.tree for cut in record.power_cuts()]
    assert [cut.tree for cut in record.power_cuts() if cut.done] == [{"a": None, "a/b": None, "a/b/c": None}]
    assert {"a": None} in trees
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a" / "b", exist_ok=False)


def predictions(count: int) -> list[Prediction]:
    pixels = np.zeros((1, 2, 2), dtype=np.uint8)
    return [Prediction(Path(f"{i}.png"), [("cat", 0.75), ("dog", 0.25)], pixels) for i in range(count)]


def csv(path: Path) -> None:
    write_csv(path, predictions(2), 2)


def picture(path: Path) -> None:
    save_picture(Image.new("RGB", (4, 3), (255, 0, 0)), path)


def reliability(path: Path) -> None:
    save_reliability_diagram(Calibration([0, 4], [0.0, 3.0], [0, 2]), "a run", path)


def curves(path: Path) -> None:
    rows: Any = [SimpleNamespace(name="a run")]
    save_curves(Comparison(rows, {}, {}, {"loss": [[(1, 2.0), (3, 1.0)]]}), path)


@pytest.mark.parametrize("older", [None, OLD])
@pytest.mark.parametrize("write", [csv, picture, reliability, curves])
def test_what_a_command_writes_for_its_user_is_all_of_it_or_what_was_there(
    write: Callable[[Path], None], older: str | None, tmp_path: Path
) -> None:
    root, name = tmp_path / "root", "results/file.out"
    root.mkdir()
    write(tmp_path / "right")
    right = (tmp_path / "right").read_bytes()
    if older is not None:
        (root / "results").mkdir()
        (root / name).write_text(older)
    with recorded(root) as record:
        write(root / name)
        record.done("written")
    before = older.encode() if older is not None else None
    found = {(cut.tree.get(name), bool(cut.done)) for cut in record.power_cuts()}
    assert found == {(before, False), (right, False), (right, True)}


def test_predictions_that_end_in_an_error_leave_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[Prediction]:
        yield predictions(1)[0]
        raise UserError("the second cannot be read")

    with recorded(tmp_path) as record, pytest.raises(UserError):
        write_csv(tmp_path / "new" / "file.csv", failing(), 2)
    assert all("new/file.csv" not in cut.tree for cut in record.power_cuts())
    assert list((tmp_path / "new").iterdir()) == []
