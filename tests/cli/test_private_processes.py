"""Processes of a run import installed packages only, and a secret protects their rendezvous."""

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from conftest import Said
from neuscale.distributed.nodes import SECRET

# Modules of the standard library, of neuscale's dependencies, and neuscale itself.
PLANTED = ("yaml", "numpy", "torch", "omegaconf", "json", "queue", "neuscale_ops", "rich", "neuscale")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current directory with modules that write to the file 'ran' when they are imported."""
    folder = tmp_path / "somebody's"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'ran')!r}, 'a').write({name!r} + '\\n')\nraise SystemExit('planted')\n"
        )
    monkeypatch.chdir(folder)
    return folder


def test_runs_of_a_sweep_import_nothing_from_the_current_folder(
    planted: Path, neuscale: Callable[..., Said], tiny_words: list[str]
) -> None:
    said = neuscale("sweep", *tiny_words, "run.seed=1,2", "train.max_steps=1", "--name", "s")
    assert said.code == 0, said.err
    assert not (planted / "ran").exists()


def test_python_m_neuscale_imports_nothing_from_the_current_folder(
    planted: Path, start: Callable[..., Any]
) -> None:
    for name in ("json", "queue", "neuscale"):  # imported before the first line of `neuscale.__main__` runs
        (planted / f"{name}.py").unlink()
    said = start("data", "list").end(60)
    assert said.code == 0, said.err
    assert not (planted / "ran").exists()


def test_processes_of_a_run_are_reached_by_nobody_else(
    planted: Path, start_endless: Callable[..., Any]
) -> None:
    process = start_endless("--processes", "2", program=("-P", "-m", "neuscale"))
    assert not (planted / "ran").exists(), "an installed package is imported, whatever lies here"

    everybody = [psutil.Process(process.popen.pid), *process.workers()]
    listening = [c.laddr for p in everybody for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3, "the launcher's store, and each worker's own"
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}

    (secret,) = {each.environ()[SECRET] for each in process.workers()}
    assert len(secret) == 32
    assert secret not in " ".join(word for each in everybody for word in each.cmdline())
    port = int(process.workers()[0].environ()["MASTER_PORT"])
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=5))
    assert store.num_keys() > 0
    if hasattr(store, "list_keys"):
        assert all(str(key).startswith(f"neuscale/{secret}/") for key in store.list_keys())
    for guess in (store, PrefixStore("neuscale/", store), PrefixStore("default_pg", store)):
        guess.set("failure/1", json.dumps({"rank": 0, "killed": False, "exit_code": 7}))
        guess.add("failures", 1)
    process.send(signal.SIGINT)
    assert process.end(60).code == 75, "saved, and not stopped by a message without the secret"


def test_two_runs_have_two_secrets(train: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def remember(*arguments: Any, **options: Any) -> Any:
        seen.append(options["env"][SECRET])
        raise OSError("enough")

    monkeypatch.setattr("neuscale.distributed.launch.subprocess.Popen", remember)
    for _ in range(2):
        train("train.max_steps=1", "--processes", "2")
    assert len(set(seen)) == 2
    assert SECRET not in os.environ
