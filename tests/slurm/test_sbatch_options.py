"""`neuscale submit --sbatch`: options of sbatch that are passed through, and those that are refused."""

from pathlib import Path

import pytest

from .conftest import WORDS, Submit, check

CHECKOUT = Path(__file__).parents[2]


def test_further_options_of_sbatch_are_in_the_script(submit: Submit, tmp_path: Path) -> None:
    options = "--mail-type=END --exclude=n3 --dependency=afterok:12 --comment='two words' --exclusive"
    code, script, said = submit(*WORDS, "--venv", "--dry-run", "--sbatch", options)
    assert code == 0, said
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert lines[-5:] == [
        "#SBATCH --mail-type=END",
        "#SBATCH --exclude=n3",
        "#SBATCH --dependency=afterok:12",
        "#SBATCH '--comment=two words'",
        "#SBATCH --exclusive",
    ]
    (tmp_path / "script").write_text(script)
    check(tmp_path / "script")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--time=3h", "--sbatch time: the script has this option already. Set --time."),
        ("--signal=B:TERM@9", "saving and resuming need it as it is"),
        ("-t 3", "--sbatch -t: expected a long option"),
        ("--exclude n3", "--sbatch n3: expected a long option"),
        ("--comment='x", "--sbatch --comment='x: No closing quotation"),
        ("--comment='a\nb'", "cannot hold a control character"),
    ],
)
def test_an_option_of_sbatch_that_would_break_the_job_is_refused(
    submit: Submit, options: str, words: str
) -> None:
    code, script, said = submit(*WORDS, "--venv", "--dry-run", "--sbatch", options)
    assert code == 2 and words in " ".join(said.split()) and script == ""


def test_a_percent_sign_in_the_runs_folder_is_one(
    submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch replaces %j, %x and others in file names, so that % must be doubled."""
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "100%j done"))
    code, script, said = submit(*WORDS, "--venv", "--dry-run")
    assert code == 0, said
    [line] = [line for line in script.splitlines() if line.startswith("#SBATCH --output=")]
    assert f"{tmp_path}/100%%j done/jobs/%j.log" in line
