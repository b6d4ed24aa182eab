"""`neuscale serve`: limits on size, time and number of requests hold, and what fails is told."""

import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("python_multipart")

from neuscale.inference.classifier import Preprocessing
from neuscale.serving.model import ServedModel
from neuscale.serving.server import Limits, create_server, listen

from .conftest import Odd
from .test_serve import HEAD, Server, served


def test_the_size_of_an_image_is_limited_before_it_is_read(odd: Odd) -> None:
    with served(odd, "odd", "--max-megabytes", "0.01") as (server, _):
        status, found = server.ask("/predict", bytes(10_001))
        assert (status, found["error"]) == (413, "the image is larger than 10,000 bytes")
        # Announced only: the answer comes although nothing is sent.
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        # Not announced: in chunks without end.
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for _ in range(3):
                connection.sendall(b"1000\r\n" + bytes(0x1000) + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        assert server.ask("/predict", odd.files()[0].read_bytes())[0] == 200


class Slow:
    """A model that takes as long as the test wants, or fails."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.fails = False

    def __call__(self, images: Tensor) -> Tensor:
        self.gate.wait(30)
        if self.fails:
            raise RuntimeError("out of order")
        return torch.zeros(len(images), 2)


@contextmanager
def in_a_thread(limits: Limits) -> Iterator[tuple[Server, Slow]]:
    model = Slow()
    plain = Preprocessing(3, 8, 8, 8, [0.0] * 3, [1.0] * 3)
    listening = listen("127.0.0.1", 0)
    served = ServedModel("slow", "cpu", ["a", "b"], False, plain, model)
    server = create_server(served, limits, listening, "127.0.0.1")
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield Server(listening.getsockname()[1]), model
    finally:
        model.gate.set()
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def test_a_model_that_takes_too_long_is_given_up(odd: Odd) -> None:
    with in_a_thread(Limits(timeout=0.3)) as (server, model):
        began = time.monotonic()
        status, found = server.ask("/predict", odd.files()[0].read_bytes())
        assert (status, found["error"]) == (504, "no answer within 0.3 seconds")
        assert time.monotonic() - began < 20
        # A client that never ends its request, too.
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(HEAD + b"Content-Length: 50\r\n\r\nabc")
            assert connection.recv(100).startswith(b"HTTP/1.1 504 ")
        model.gate.set()
        assert server.ask("/predict", odd.files()[0].read_bytes())[0] == 200


def test_more_requests_than_can_wait_are_turned_away(odd: Odd) -> None:
    content = odd.files()[0].read_bytes()
    with in_a_thread(Limits(max_batch=1)) as (server, model), ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(server.ask, "/predict", content) for _ in range(20)]
        while sum(each.done() for each in asked) < 20 - 10:
            time.sleep(0.01)
        assert server.ask("/health")[0] == 200
        model.gate.set()
        statuses = [each.result()[0] for each in asked]
    assert statuses.count(503) >= 10 and statuses.count(200) >= 9
    assert set(statuses) == {200, 503}


def test_connections_that_send_nothing_turn_nobody_away(odd: Odd) -> None:
    content = odd.files()[0].read_bytes()
    with in_a_thread(Limits(max_batch=1)) as (server, model):
        model.gate.set()
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
        assert server.ask("/health")[0] == 200
        assert server.ask("/predict", content)[0] == 200
        for connection in idle:
            connection.close()


def test_a_forms_file_stays_in_memory(odd: Odd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have no folder for temporary files, and nothing is stored."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    picture = io.BytesIO()
    Image.effect_noise((1200, 1200), 90).save(picture, "PNG")
    head = b'--XX\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'
    body = head + picture.getvalue() + b"\r\n--XX--\r\n"
    assert len(body) > 1 << 20
    with in_a_thread(Limits()) as (server, model):
        model.gate.set()
        status, found = server.ask("/predict", body, content_type="multipart/form-data; boundary=XX")
        assert status == 200, found


@pytest.mark.parametrize("several", [False, True])
def test_numbers_that_are_not_finite_are_no_answer(several: bool) -> None:
    """NaN is below any threshold: a multi-label model would have found nothing."""
    plain = Preprocessing(3, 8, 8, 8, [0.0] * 3, [1.0] * 3)
    model = ServedModel("nan", "cpu", ["a", "b"], several, plain, lambda images: images)
    with pytest.raises(ValueError, match="not finite"):
        model.answer(torch.tensor([torch.nan, 1.0]), 2)


def test_a_model_that_fails_is_told_and_the_next_request_is_answered(odd: Odd) -> None:
    with in_a_thread(Limits()) as (server, model):
        model.gate.set()
        model.fails = True
        status, found = server.ask("/predict", odd.files()[0].read_bytes())
        assert (status, "the model failed" in found["error"]) == (500, True)
        model.fails = False
        assert server.ask("/predict", odd.files()[0].read_bytes())[0] == 200
