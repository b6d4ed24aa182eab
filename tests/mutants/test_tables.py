"""The tables of planted bugs fit the source: one that has gone stale would count as caught by nothing."""

import importlib.util
from pathlib import Path

RUNNER = Path(__file__).parents[2] / "scripts" / "test_mutants.py"


def test_every_planted_bug_still_has_its_place() -> None:
    spec = importlib.util.spec_from_file_location("run_mutants", RUNNER)
    assert spec is not None and spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["run_mutants"] = runner
    spec.loader.exec_module(runner)
    mutants = runner.load_mutants()
    for mutant in mutants:
        runner.check_mutant(mutant)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in mutants}) == len(mutants)
    assert sum(mutant.chosen for mutant in mutants) >= 12
