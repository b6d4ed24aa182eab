"""Bitwise comparison of two runs, and the first point at which they differ."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from neuscale.analysis.listing import metrics_of
from neuscale.runs.folder import RunFolder, checkpoint_paths, checkpoint_step
from neuscale.runs.manifest import load_manifest
from neuscale.runs.metrics import ADDED_LATER, TIMINGS


@dataclass(frozen=True)
class Point:
    """A point of the curves at which two runs differ: metric `name` of a split, with both values."""

    step: int
    split: str
    name: str
    before: Any
    now: Any
    equal_points: int

    def __str__(self) -> str:
        where = "training" if self.split == "train" else "validation"
        return f"step {self.step}: {where} {self.name} {self.before} → {self.now}"


@dataclass(frozen=True)
class Verdict:
    """Result of a comparison: `equal` (None: unknown), the reason (`words`), the `first` differing point."""

    equal: bool | None
    words: str
    first: Point | None = None


@dataclass(frozen=True)
class FinalWeights:
    """Hash of the weights after `step`."""

    step: int
    sha256: str


def compare_results(before: RunFolder, now: RunFolder) -> Verdict:
    """Compare curves and final weights of two runs. Raises UserError for a manifest that cannot be read."""
    curves = (metrics_of(before), metrics_of(now))
    point, equal_points, common = first_difference(*curves)
    if point is not None:
        before_it = f"the {equal_points} points before are" if equal_points > 1 else "the one before is"
        at = f"{before_it} equal" if equal_points else "it is the first point"
        return Verdict(False, f"differs first at {point} ({at})", point)
    a, b = final_weights(before), final_weights(now)
    points = f"{equal_points} point{'s' if equal_points != 1 else ''} of the curves"
    if a is not None and b is not None and a.step == b.step:
        if a.sha256 != b.sha256:
            return Verdict(False, f"the weights after step {a.step} differ; {points} are equal")
        return Verdict(True, f"bitwise equal: {points}, and the weights after {a.step} steps")
    if not equal_points:
        return Verdict(None, "there is nothing that both have: no common points, and no common weights")
    ends = ", ".join(
        f"{run.name} has {f'weights after step {w.step}' if w else 'no weights and no hash of them'}"
        for run, w in ((before, a), (now, b))
    )
    return Verdict(None, f"equal at {points} that both have, up to step {common}; {ends}")


def first_difference(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]]
) -> tuple[Point | None, int, int]:
    """(first differing point, number of equal points before it, step of the last equal point).

    Only steps that both runs have are compared, without timings.
    """
    a, b = _by_step(before), _by_step(now)
    equal = last = 0
    for step, split in sorted(a.keys() & b.keys()):
        then, values = a[step, split], b[step, split]
        later = {name for name in ADDED_LATER if name not in then or name not in values}
        for name in sorted({*then, *values} - {*TIMINGS, *later, "step", "split"}):
            x, y = then.get(name), values.get(name)
            if x != y and not (x != x and y != y):  # NaN differs from itself
                return Point(step, split, name, x, y, equal), equal, last
        equal, last = equal + 1, step
    return None, equal, last


def _by_step(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], Mapping[str, Any]]:
    return {(line["step"], str(line.get("split"))): line for line in lines}


def final_weights(run: RunFolder) -> FinalWeights | None:
    """Hash of the final weights from the manifest, else of the last checkpoint; None without both."""
    manifest = load_manifest(run.manifest_file)
    result = manifest["result"] or {}
    if result.get("weights_sha256"):
        return FinalWeights(result["steps"], result["weights_sha256"])
    paths = checkpoint_paths(run.checkpoints)
    if not paths:
        return None
    from neuscale.models.weights import weights_hash
    from neuscale.training.checkpoint import open_checkpoint

    return FinalWeights(checkpoint_step(paths[-1]), weights_hash(open_checkpoint(paths[-1]).weights()))
