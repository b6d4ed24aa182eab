"""The package layout matches CONTRIBUTING.md, and docstrings and messages keep a few rules."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "app" / "neuscale"
FILES = sorted(PACKAGE.rglob("*.py"))

LONGEST_FILE = 300
# Splinters are files of at most 80 lines that only one other file imports.
MOST_SPLINTERS = 15  # each CLI command has its own file
MOST_QUESTIONS = 12
QUESTIONS = ("What ", "Whether ", "Says ", "Has ", "How ", "Where ", "Who ", "When ", "Which ", "Why ")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Modules and names that a file imports, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_a_file_can_be_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_few_small_files_have_only_one_reader() -> None:
    modules = {module_name(path): path for path in FILES if path.name != "__init__.py"}
    importers: dict[str, set[str]] = {name: set() for name in modules}
    for path in FILES:
        for name in imports(path):
            if name in importers:
                importers[name].add(module_name(path))
    splinters = [
        name
        for name, path in modules.items()
        if len(importers[name]) == 1 and len(path.read_text().splitlines()) <= 80
    ]
    assert len(splinters) <= MOST_SPLINTERS, splinters


def test_no_two_files_of_a_folder_differ_by_an_ending_only() -> None:
    for folder in {path.parent for path in FILES}:
        names = sorted(path.stem for path in folder.glob("*.py"))
        alike = [(a, b) for a in names for b in names if a != b and b.startswith(a) and b[len(a)] != "_"]
        assert alike == [], folder


def test_docstrings_are_noun_phrases_or_imperatives() -> None:
    questions = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if text.startswith(QUESTIONS):
                    questions.append(f"{path.relative_to(PACKAGE)}: {text.splitlines()[0]}")
    assert len(questions) <= MOST_QUESTIONS, questions


def test_messages_of_the_library_name_arguments_and_not_options() -> None:
    """Only whole commands, which a user can copy, and options of other programs may contain `--option`."""
    others = ("neuscale ", "salloc", "srun", "docker", "--shm-size", "apptainer", "--cpus-per-task")
    found = []
    for path in FILES:
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith("Error"):
                text = " ".join(
                    part.value
                    for part in ast.walk(node)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                )
                if re.search(r"(^|[\s'(])--[a-z]", text) and not any(word in text for word in others):
                    found.append(f"{path.relative_to(PACKAGE)}: {text}")
    assert found == []


def test_the_layers_in_contributing_are_those_that_lint_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["neuscale"])
    held = [name for layer in layers for name in re.findall(r"\w+", layer) if name != "__main__"]
    contributing = ROOT / "CONTRIBUTING.md"
    if not contributing.exists():
        pytest.skip("the image does not contain CONTRIBUTING.md")
    text = contributing.read_text()
    block = text[text.index("    api  ") : text.index("Data flows upwards")]
    drawn = []
    for line in block.splitlines():
        first = re.split(r"\s{3,}", line.strip())[0]
        drawn += re.findall(r"\w+", first)
    assert drawn == held


def test_what_is_protected_is_held_by_tests_that_are_there() -> None:
    if not (ROOT / "SECURITY.md").exists():
        pytest.skip("the image does not contain SECURITY.md")
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 8
    for row in rows:
        named = re.findall(r"`((?:tests|cuda_ops/tests)/\S+\.py)`", row.split("|")[-2])
        assert named, row
        assert all((ROOT / name).is_file() for name in named), row
