"""Launchers on several nodes: consecutive ranks, and one cause of failure, reported once to all nodes."""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from neuscale.distributed import launch as launching
from neuscale.distributed import rendezvous as peers_module
from neuscale.distributed.launch import launch
from neuscale.distributed.nodes import Nodes
from neuscale.distributed.rendezvous import Failure, Peers
from neuscale.errors import UserError, WorkerError
from stand_in import StandIn, meanwhile, send, until

pytestmark = pytest.mark.timeout(60)  # they take less than a second each

MEET, CAUSE, LEAVE = peers_module._MEET, peers_module._CAUSE_SECONDS, peers_module._LEAVE_SECONDS


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "_ASK_SECONDS", 0.02)
    monkeypatch.setattr(peers_module, "_CAUSE_SECONDS", 0.3)
    monkeypatch.setattr(peers_module, "_LEAVE_SECONDS", 10.0)
    monkeypatch.setattr(peers_module, "_MEET", timedelta(seconds=10))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def store() -> Iterator[Any]:
    """The store of the first node's launcher, whose part the test plays."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    yield PrefixStore("neuscale/secret of the job", store)


def second(store: Any, count: int = 2) -> Nodes:
    return Nodes(count, 1, "n2", "127.0.0.1", store.underlying_store.port, "secret of the job")


@pytest.fixture
def two() -> list[Peers]:
    """The launchers of two nodes, after they have met."""
    first = Peers(Nodes(2, 0, "n1", "127.0.0.1", free_port()))
    found = [first, Peers(Nodes(2, 1, "n2", "127.0.0.1", first.port))]
    together(*(lambda each=each: each.meet(lambda: False) for each in found))
    return found


def together(*acts: Callable[[], Any]) -> list[Any]:
    """Return values of all `acts`, which run in parallel threads."""
    answers: list[Any] = [None] * len(acts)

    def one(index: int) -> None:
        answers[index] = acts[index]()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_the_ranks_of_a_node_begin_after_those_of_the_node_before(stand_in: StandIn, store: Any) -> None:
    stand_in.does("begun()")
    store.add("launchers", 2)  # the other two of three nodes
    store.add("done", 2)
    assert launch(["train"], 2, second(store, count=3)) == 0
    assert stand_in.begun() == ["2", "3"]
    told = [stand_in.started(rank)["env"] for rank in (2, 3)]
    assert [env["LOCAL_RANK"] for env in told] == ["0", "1"], "a GPU is chosen by it"
    for env in told:
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == ("6", "2")
        assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("127.0.0.1", str(store.underlying_store.port))
    assert store.add("done", 0) == 3
    assert store.add("left", 0) == 1


def test_a_node_waits_for_the_others_before_it_starts_processes(stand_in: StandIn, store: Any) -> None:
    stand_in.does("begun()")
    store.add("done", 1)

    def come() -> None:
        until(lambda: store.add("launchers", 0) == 1)
        time.sleep(0.1)
        assert stand_in.begun() == []
        store.add("launchers", 1)

    with meanwhile(come):
        assert launch(["train"], 1, second(store)) == 0
    assert stand_in.begun() == ["1"]


def test_a_job_that_is_stopped_while_it_waits_for_a_node_ends(stand_in: StandIn, store: Any) -> None:
    stand_in.does("begun()")

    def stop() -> None:
        until(lambda: store.add("launchers", 0) == 1)
        store.add("done", 1)
        send(signal.SIGTERM)

    with meanwhile(stop), pytest.raises(WorkerError, match="stopped by SIGTERM before it could save"):
        launch(["train"], 1, second(store))
    assert stand_in.begun() == []


def test_a_process_of_another_node_is_named_there_and_its_exit_code_is_everywhere(
    stand_in: StandIn, store: Any
) -> None:
    stand_in.does("on(signal.SIGTERM, lambda: os._exit(1))", "begun()", "while True: time.sleep(0.01)")
    store.add("launchers", 1)

    def fail() -> None:
        until(lambda: stand_in.begun() == ["2", "3"])
        store.set("failure/1", json.dumps({"rank": 1, "killed": False, "exit_code": 2}))
        store.add("failures", 1)
        store.add("done", 1)

    with meanwhile(fail):
        assert launch(["train"], 2, second(store)) == 2
    assert stand_in.said(2) == stand_in.said(3) == ["SIGTERM"]


def test_a_process_that_fails_here_is_named_by_its_rank_among_all_and_its_node(
    stand_in: StandIn, store: Any
) -> None:
    stand_in.does("if rank == 3: os.kill(os.getpid(), signal.SIGKILL)", "wait_for('never')")
    store.add("launchers", 1)
    store.add("done", 1)
    with pytest.raises(WorkerError, match=r"^process 3 of 4 on n2 was ended by SIGKILL\."):
        launch(["train"], 2, second(store))
    assert json.loads(store.get("failure/1")) == {"rank": 3, "killed": True, "exit_code": 1}
    assert store.add("failures", 0) == 1


class WithoutTheFirst(Peers):
    """Peers that lose the first node's launcher while processes train."""

    def failed(self) -> bool:
        self._store = None
        return super().failed()


def test_without_the_first_nodes_launcher_processes_are_ended_and_it_is_said(
    stand_in: StandIn, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "Peers", WithoutTheFirst)
    monkeypatch.setattr(peers_module, "_LEAVE_SECONDS", 0.1)
    stand_in.does("on(signal.SIGTERM, lambda: sys.exit(75))", "note('here')", "time.sleep(30)")
    store.add("launchers", 1)
    with pytest.raises(WorkerError, match="the launcher of the first node is gone") as raised:
        launch(["train"], 1, second(store))
    assert raised.value.exit_code == 1


def test_processes_that_end_well_are_those_of_all_nodes(two: list[Peers]) -> None:
    ended: list[float] = []

    def late() -> Failure | None:
        time.sleep(0.2)
        ended.append(time.monotonic())
        return two[1].leave(failing=False)

    def early() -> Failure | None:
        cause = two[0].leave(failing=False)
        ended.append(time.monotonic())
        return cause

    assert together(early, late) == [None, None]
    assert ended == sorted(ended), "the store's launcher leaves last"
    assert not two[0].failed() and not two[1].failed()


def test_the_launcher_that_has_the_store_leaves_after_the_others(two: list[Peers]) -> None:
    """Otherwise launchers that are still leaving would lose the store and report its launcher as gone."""
    ended: list[str] = []

    def first() -> None:
        two[0].leave(failing=False)
        ended.append("first")

    def second() -> None:
        store = two[1]._store
        store.add("done", 1)
        time.sleep(0.3)
        ended.append("second")
        store.add("left", 1)

    together(first, second)
    assert ended == ["second", "first"]


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([Failure(0, False, 2), Failure(3, True, 1)], Failure(3, True, 1)),
        ([Failure(2, False, 2), Failure(1, False, 1)], Failure(2, False, 2)),
        ([Failure(0, True, 1), Failure(3, True, 9)], Failure(0, True, 1)),
    ],
)
def test_the_cause_is_the_first_killed_process_else_the_first_failure(
    two: list[Peers], failures: list[Failure], cause: Failure
) -> None:
    for failure in failures:
        two[failure.rank // 2].tell(failure)
    assert [peers.failed() for peers in two] == [True, True]
    assert [peers.heard for peers in two] == [True, True]
    assert together(*(lambda each=each: each.leave(failing=True) for each in two)) == [cause, cause]


def test_a_failure_while_a_node_waits_for_the_others_is_heard(two: list[Peers]) -> None:
    def fail() -> Failure | None:
        time.sleep(0.2)
        two[1].tell(Failure(3, True, 1))
        return two[1].leave(failing=True)

    assert together(lambda: two[0].leave(failing=False), fail) == [Failure(3, True, 1)] * 2


def test_the_store_is_asked_now_and_then_only(two: list[Peers], monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit matters because each of a hundred nodes polls ten times a second."""
    now = [5000.0]
    monkeypatch.setattr(peers_module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    monkeypatch.setattr(peers_module, "_ASK_SECONDS", 0.5)
    assert not two[0].failed()
    two[1].tell(Failure(3, False, 1))
    now[0] += 0.4
    assert not two[0].failed()
    now[0] += 0.2
    assert two[0].failed()


def test_how_long_launchers_listen_for_a_cause_and_stay_for_others() -> None:
    """Other launchers check for a failure every half second, then have ten seconds to end their processes."""
    assert (CAUSE, LEAVE) == (2, 15)


def test_one_node_asks_nobody() -> None:
    peers = Peers(Nodes())
    assert peers.port > 0
    assert peers.meet(lambda: True)
    peers.tell(Failure(0, True, 1))
    assert not peers.failed()
    assert peers.leave(failing=True) is None


def test_the_first_nodes_launcher_gone_is_a_failure(store: Any) -> None:
    peers = Peers(second(store))

    class Gone:
        def add(self, *_: Any) -> int:
            raise ConnectionError

    peers._store = Gone()
    assert peers.failed() and peers.heard
    peers.tell(Failure(2, False, 1))
    assert peers.leave(failing=True) is None


def test_a_port_that_something_else_has_is_named(store: Any) -> None:
    port = store.underlying_store.port
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}.*cannot listen there(.|\n)*MASTER_PORT"):
        Peers(Nodes(2, 0, "n1", "127.0.0.1", port))


def test_nodes_that_do_not_come_are_counted(
    store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _seconds: now.append(now.pop() + 60))
    monkeypatch.setattr(peers_module, "time", clock)
    monkeypatch.setattr(peers_module, "_MEET", MEET)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-3]")
    peers = Peers(second(store, count=3))
    with pytest.raises(UserError, match=r"1 of 3 nodes are there after 30 minutes"):
        peers.meet(lambda: False)
    assert now[0] == pytest.approx(1860, abs=61)
    said = capsys.readouterr().err
    assert said.count("waiting for 2 of the 3 nodes (n[1-3])") == 1 and "srun --pty" in said
