"""Values of all processes, by rank."""

import json
import subprocess
import sys
from pathlib import Path

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
    """Also where they are of other lengths."""
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
