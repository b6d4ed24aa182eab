"""Runs are reported as equal only if they are bitwise equal; otherwise the first difference is named."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from neuscale.analysis.equality import compare_results, final_weights, first_difference
from neuscale.models.weights import weights_hash
from neuscale.runs.folder import RunFolder
from neuscale.runs.metrics import TIMINGS
from neuscale.training.checkpoint import CheckpointFolder

from .conftest import RunWriter, manifest_of, train_lines, val_lines

# sha256 of b"a.weight float32 [2, 3]\0" and 0, 1, …, 5 as little-endian float32, and then
# b"b int64 []\0" and 7 as int64.
KNOWN = "73066bd2f5e11753bfecebe82d7b8e7f54f7751c1fcf125e1d357f755f6fab5f"


def state() -> dict[str, torch.Tensor]:
    return {"b": torch.tensor(7), "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3)}


def test_the_hash_of_weights_is_that_of_their_names_types_shapes_and_bytes() -> None:
    assert weights_hash(state()) == KNOWN
    sliced = torch.arange(12, dtype=torch.float32).reshape(2, 2, 3)[0]  # a view of a larger storage
    transposed = sliced.t().contiguous().t()
    for same in (sliced, transposed, sliced.requires_grad_()):
        assert weights_hash({"a.weight": same, "b": torch.tensor(7)}) == KNOWN


def test_whatever_differs_in_weights_makes_another_hash() -> None:
    value = state()["a.weight"]
    one_bit = value.clone()
    one_bit.view(torch.uint8)[1, 11] ^= 1
    negative_zero = value.clone()
    negative_zero[0, 0] = -0.0
    changed = {
        "name": {"a.weights": value, "b": torch.tensor(7)},
        "shape": {**state(), "a.weight": value.reshape(3, 2)},
        "type": {**state(), "a.weight": value.view(torch.int32)},
        "order": {**state(), "a.weight": value.flip(1)},
        "one bit": {**state(), "a.weight": one_bit},
        "sign of zero": {**state(), "a.weight": negative_zero},
        "swapped": {"a.weight": state()["b"], "b": value},
        "less": {"a.weight": value},
    }
    hashes = {what: weights_hash(weights) for what, weights in changed.items()}
    assert len({KNOWN, *hashes.values()}) == len(changed) + 1


def lines() -> list[dict[str, Any]]:
    return sorted(train_lines() + val_lines(), key=lambda line: line["step"])


def change(index: int, **values: Any) -> list[dict[str, Any]]:
    """The curves with some values replaced at one point."""
    changed = lines()
    changed[index] |= values
    return changed


@pytest.mark.parametrize("name", ["loss", "accuracy", "lr"])
def test_a_last_digit_of_any_metric_is_seen(name: str) -> None:
    index = 4  # after the training points of steps 2, 4 and 6 and the evaluation of step 5
    then = lines()[index]
    assert (then["split"], then["step"]) == ("train", 8)
    now = float(np.nextafter(then[name], 9))
    point, equal, last = first_difference(lines(), change(index, **{name: now}))
    assert point is not None
    assert (point.step, point.split, point.name, point.before, point.now) == (
        8,
        "train",
        name,
        then[name],
        now,
    )
    assert (equal, last, point.equal_points) == (4, 6, 4)
    assert str(point) == f"step 8: training {name} {then[name]} → {now}"


def test_a_difference_of_an_evaluation_is_called_one_of_validation() -> None:
    index = next(i for i, line in enumerate(lines()) if line["split"] == "val" and line["step"] == 20)
    point, *_ = first_difference(lines(), change(index, top5=0.5))
    assert str(point) == "step 20: validation top5 0.93 → 0.5"


def test_timings_are_no_difference_and_every_one_of_them_is_free() -> None:
    assert set(TIMINGS) == {"images_per_second", "data_wait", "tflops", "mfu", "memory_gb"}
    other = [{name: v + 1 if name in TIMINGS else v for name, v in line.items()} for line in lines()]
    assert first_difference(lines(), other) == (None, 17, 25)


def test_a_loss_that_is_no_number_equals_itself_and_no_number() -> None:
    broken = change(3, loss=math.nan)
    assert first_difference(broken, change(3, loss=math.nan))[0] is None
    for a, b in ((broken, lines()), (lines(), broken)):
        point = first_difference(a, b)[0]
        assert point is not None
        assert point.equal_points == 3


def test_a_metric_that_only_one_has_is_a_difference_and_a_step_is_none() -> None:
    without = [{n: v for n, v in line.items() if n != "accuracy"} for line in lines()]
    point = first_difference(lines(), without)[0]
    assert point is not None
    assert (point.name, point.before, point.now) == ("accuracy", 0.02, None)
    assert first_difference(lines(), lines()[3:9]) == (None, 6, 14)
    # Metrics that runs of earlier versions do not have are ignored where one run lacks them.
    today = [{**line, "macro_f1": 0.5} for line in lines()]
    assert first_difference(lines(), today)[0] is None
    other = [{**line, "macro_f1": 0.25} for line in lines()]
    assert first_difference(other, today)[0] is not None


def result(sha: str | None, steps: int = 25) -> dict[str, Any]:
    return {"steps": steps, "weights_sha256": sha}


def verdict(write_run: RunWriter, **other: Any) -> tuple[bool | None, str]:
    """Verdict on run 'a' and on run 'b', which differs in the given fields."""
    a = write_run("a", lines=lines(), result=result("a" * 64))
    b = write_run("b", **{"lines": lines(), "result": result("a" * 64), **other})
    found = compare_results(a, b)
    return found.equal, found.words


def test_equal_curves_and_weights_are_equal(write_run: RunWriter) -> None:
    words = "bitwise equal: 17 points of the curves, and the weights after 25 steps"
    assert verdict(write_run) == (True, words)


def test_other_weights_are_not(write_run: RunWriter) -> None:
    words = "the weights after step 25 differ; 17 points of the curves are equal"
    assert verdict(write_run, result=result("b" * 64)) == (False, words)


def test_weights_of_other_steps_are_not_compared(write_run: RunWriter) -> None:
    words = "equal at 10 points of the curves that both have, up to step 15;"
    words += " a has weights after step 25, b has weights after step 15"
    found = verdict(write_run, lines=lines()[:10], result=result("a" * 64, 15))
    assert found == (None, words)


def test_with_nothing_in_common_there_is_no_verdict(write_run: RunWriter) -> None:
    equal, words = verdict(write_run, lines=[], result=None)
    assert equal is None
    assert "nothing that both have" in words


def test_where_the_curves_part_is_told(write_run: RunWriter) -> None:
    assert verdict(write_run, lines=change(0, lr=0.5)) == (
        False,
        "differs first at step 2: training lr 0.0005 → 0.5 (it is the first point)",
    )


def test_how_many_points_before_are_equal(write_run: RunWriter) -> None:
    equal, words = verdict(write_run, lines=change(2, loss=9.0))
    assert (equal, words.split(" (")[1]) == (False, "the 2 points before are equal)")


def test_without_a_hash_the_last_checkpoint_has_the_weights(write_run: RunWriter) -> None:
    run = write_run(result=None)
    assert final_weights(run) is None
    folder = CheckpointFolder(run.checkpoints, keep_last=9)
    for step in (5, 10):
        folder.save(step, 1, {**state(), "b": torch.tensor(step)}, {}, {}, is_best=step == 5)
    found = final_weights(run)
    assert found is not None
    assert (found.step, found.sha256) == (10, weights_hash({**state(), "b": torch.tensor(10)}))
    whole = manifest_of("pets")
    manifest = json.loads(run.manifest_file.read_text()) | {"result": whole["result"] | result("c" * 64, 25)}
    run.manifest_file.write_text(json.dumps(manifest))
    found = final_weights(RunFolder(run.path))
    assert found is not None
    assert (found.step, found.sha256) == (25, "c" * 64)
