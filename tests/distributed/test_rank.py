"""Values gathered from all ranks, and detection of the environment variables of a launcher."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neuscale.distributed.rank import started_by_launcher
from neuscale.errors import UsageError

GATHER = """
import json, sys
import torch, torch.distributed as dist
from neuscale.distributed.rank import gather_values
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=3)
values = (rank, None if rank == 1 else {"é": "x" * 1000 * rank}, [])
found = [gather_values(value, torch.device("cpu")) for value in values]
print(json.dumps(found))
dist.destroy_process_group()
"""


def test_every_process_has_the_values_of_all_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    """The values may differ in length between ranks."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GATHER, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert found == [[[0, 1, 2], [{"é": ""}, None, {"é": "x" * 2000}], [[], [], []]]] * 3


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            {"WORLD_SIZE": "4"},
            "WORLD_SIZE=4 is set in this environment, but not RANK and MASTER_ADDR and",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "but not MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is set"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= is set"),
    ],
)
def test_what_a_launcher_left_in_a_shell_is_named(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, str], words: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not started_by_launcher()
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        started_by_launcher()
    assert words in caught.value.problem and "unset WORLD_SIZE" in caught.value.fix
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not started_by_launcher()
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert started_by_launcher()
