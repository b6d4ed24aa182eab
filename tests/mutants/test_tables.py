"""Every planted bug in the mutant tables applies to the source; an outdated one would test nothing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).parents[2]
if not (TOP / "docker-compose.yml").is_file():
    pytest.skip("the whole of the source is not in this checkout", allow_module_level=True)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/test_mutants.py as a module."""
    spec = importlib.util.spec_from_file_location("run_mutants", TOP / "scripts" / "test_mutants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "run_mutants", module)
    spec.loader.exec_module(module)
    return module


def test_every_planted_bug_still_has_its_place(runner: ModuleType) -> None:
    mutants = runner.load_mutants()
    for mutant in mutants:
        runner.check_mutant(mutant)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in mutants}) == len(mutants)
    assert sum(mutant.chosen for mutant in mutants) >= 12
