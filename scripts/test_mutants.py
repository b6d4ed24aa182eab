"""Plant known bugs one at a time in a copy of the repository, and count those that its tests catch.

    python scripts/test_mutants.py                 # all of tests/mutants/*.toml
    python scripts/test_mutants.py --chosen        # the few that continuous integration runs
    python scripts/test_mutants.py --table training
    python scripts/test_mutants.py drop_path eval  # those whose bug or file contains a word

A table has one entry per bug: `bug` (what goes wrong), `file`, `old` and `new` (the text that is
replaced; `old` occurs once in the file), `tests` (the nearest tests, as pytest takes them), and
optionally `chosen = true`, or `survives = "reason"` for a bug that no test can or should see.
Optional packages are hidden from the tests. Mutation tools (cosmic-ray, mutmut) create thousands of
mutants, most of which no user would notice; these tables contain bugs that would harm users.
"""

import argparse
import csv
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "tests" / "mutants"
TIMEOUT = 300.0
WANTED, WANTED_OF_A_FOLDER = 0.90, 0.80

# Test runs are forked from a process that has imported these libraries, but no module of the program.
PROCESSES = multiprocessing.get_context("forkserver")
LIBRARIES = ["pytest", "hypothesis", "torch", "torchvision", "torchmetrics", "accelerate", "safetensors"]
LIBRARIES += ["hydra", "omegaconf", "typer", "rich", "matplotlib", "tensorboard", "jinja2", "filelock"]


@dataclass(frozen=True)
class Mutant:
    """Bug that replaces `old` by `new` in `file`; `tests` should catch it, and scores are per `folder`."""

    table: str
    bug: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    chosen: bool = False
    survives: str = ""

    def has_one_of(self, words: Sequence[str]) -> bool:
        """True if the bug or the file contains one of `words`, or if there are no words."""
        return not words or any(word in f"{self.bug} {self.file}" for word in words)

    @property
    def folder(self) -> str:
        parts = Path(self.file).parts
        return "/".join(parts[1:-1][:2]) if parts[0] == "app" else parts[0]


@dataclass(frozen=True)
class Verdict:
    """Result of a mutant: caught or not, by which test, and the seconds it took."""

    mutant: Mutant
    caught: bool
    by: str
    seconds: float


def load_mutants() -> list[Mutant]:
    """All entries of all tables."""
    return [
        Mutant(path.stem, **{**entry, "tests": tuple(entry["tests"])})
        for path in sorted(TABLES.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]


def check_mutant(mutant: Mutant) -> None:
    """Raise ValueError if an entry no longer matches the source, or one of its tests does not exist."""
    found = (ROOT / mutant.file).read_text().count(mutant.old)
    if found != 1 or mutant.old == mutant.new:
        raise ValueError(f"{mutant.table}: '{mutant.bug}': `old` occurs {found} times in {mutant.file}")
    for test in mutant.tests:
        if not (ROOT / test.partition("::")[0]).exists():
            raise ValueError(f"{mutant.table}: '{mutant.bug}': there is no {test}")


def copy_repository(target: Path) -> None:
    """Copy the tracked and the new, not ignored files of the working tree to `target`."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def _pytest_in(copy: Path, arguments: list[str], output: Path) -> None:
    """Run pytest in `copy` in a forked process, and exit with its exit code."""
    os.setsid()
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(copy)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(copy / "app"), str(copy / "tests" / "mutants")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DEBUG_TEMPROOT": str(copy.parent),
    }
    sys.dont_write_bytecode = True
    sys.argv = ["pytest"]
    sys.path[:0] = [str(copy / "app"), str(copy / "tests" / "mutants")]
    import pytest

    code = int(pytest.main(arguments))
    sys.stdout.flush()
    os._exit(code)


def run_tests(tests: Sequence[str], copy: Path, *options: str) -> tuple[int, str]:
    """Run `tests` in `copy`; return pytest's exit code (124 after TIMEOUT) and output."""
    output = copy.with_suffix(".out")
    arguments = ["-q", "--no-header", "-p", "without_optional_packages", "-p", "no:cacheprovider"]
    process = PROCESSES.Process(target=_pytest_in, args=(copy, [*arguments, *options, *tests], output))
    process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        assert process.pid is not None
        os.killpg(process.pid, 9)
        process.join()
        return 124, output.read_text()
    return process.exitcode, output.read_text()


def try_mutant(mutant: Mutant, copy: Path) -> Verdict:
    """Plant a bug in `copy`, run its tests, and remove it again."""
    path = copy / mutant.file
    sound = path.read_text()
    path.write_text(sound.replace(mutant.old, mutant.new))
    began = time.monotonic()
    try:
        code, out = run_tests(mutant.tests, copy, "-x", "--tb=no")
    finally:
        path.write_text(sound)
    failed = [line.split(" - ")[0] for line in out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if code > 2 and code != 124 and not failed:  # below 0: a signal killed pytest
        raise RuntimeError(f"'{mutant.bug}': pytest ended with {code}:\n{out}")
    by = failed[0] if failed else {0: "", 124: "its time ran out"}.get(code, f"pytest ended with {code}")
    return Verdict(mutant, code != 0, by, time.monotonic() - began)


def try_all(mutants: Sequence[Mutant], jobs: int, folder: Path) -> list[Verdict]:
    """Verdicts on all mutants, tried `jobs` at a time; each is printed as soon as it is known."""
    copies: SimpleQueue[Path] = SimpleQueue()
    for job in range(jobs):
        copy_repository(folder / f"copy{job}")
        copies.put(folder / f"copy{job}")

    def one(mutant: Mutant) -> Verdict:
        copy = copies.get()
        try:
            verdict = try_mutant(mutant, copy)
        finally:
            copies.put(copy)
        state = "caught  " if verdict.caught else "SURVIVED"
        print(f"{state} {verdict.seconds:4.0f} s  {mutant.folder}: {mutant.bug}  {verdict.by}", flush=True)
        return verdict

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, mutants))


def report(verdicts: Sequence[Verdict]) -> bool:
    """Print the scores by folder and the survivors; return False if a score is too low."""
    folders: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        folders[verdict.mutant.folder].append(verdict)
    print("\nfolder               caught   of  score")
    good = True
    for name, group in [*sorted(folders.items()), ("all", list(verdicts))]:
        caught = sum(verdict.caught for verdict in group)
        score = caught / len(group)
        good &= score >= (WANTED if name == "all" else WANTED_OF_A_FOLDER)
        print(f"{name:20} {caught:6} {len(group):4}  {score:.0%}")
    for verdict in verdicts:
        if not verdict.caught:
            reason = verdict.mutant.survives or "no reason given"
            print(f"survived: {verdict.mutant.file}: {verdict.mutant.bug} ({reason})")
    return good


def write_scores(verdicts: Sequence[Verdict], path: Path) -> None:
    """Write a CSV with the numbers of planted and caught bugs by folder."""
    folders = sorted({verdict.mutant.folder for verdict in verdicts})
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["folder", "planted", "caught"])
        for folder in folders:
            group = [verdict.caught for verdict in verdicts if verdict.mutant.folder == folder]
            writer.writerow([folder, len(group), sum(group)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="take the mutants whose bug or file has one of these")
    parser.add_argument("--table", help="take the mutants of one table only")
    parser.add_argument("--chosen", action="store_true", help="take the few that are marked as chosen")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="mutants at a time")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the sound tests first")
    parser.add_argument("--results", type=Path, help="write the score of each folder to this CSV")
    options = parser.parse_args()
    mutants = [
        mutant
        for mutant in load_mutants()
        if (mutant.chosen or not options.chosen)
        and options.table in (None, mutant.table)
        and mutant.has_one_of(options.words)
    ]
    for mutant in mutants:
        check_mutant(mutant)
    if not mutants:
        print("no such mutant")
        return 2
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    sys.path.append(str(TABLES))
    PROCESSES.set_forkserver_preload(["without_optional_packages", *LIBRARIES])
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        if not options.no_baseline:
            copy_repository(folder / "sound")
            tests = sorted({test for mutant in mutants for test in mutant.tests})
            code, out = run_tests(tests, folder / "sound", "-n", str(options.jobs), "--dist", "loadfile")
            if code:
                print(out)
                print("the tests fail without any bug planted")
                return 1
        verdicts = try_all(mutants, options.jobs, folder)
    if options.results:
        write_scores(verdicts, options.results)
    return 0 if report(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
