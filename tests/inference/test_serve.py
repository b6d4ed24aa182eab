"""`neuscale serve`: the answers of `predict` over HTTP, and a shutdown that drops none."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("python_multipart")

from neuscale.serving.server import listen

from .conftest import Odd

Command = Callable[..., Any]
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@dataclass(frozen=True)
class Server:
    port: int

    def ask(
        self, path: str, body: bytes | None = None, method: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and decoded JSON, or text, of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.getheader("content-type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text
        finally:
            connection.close()


@contextmanager
def served(odd: Odd, *words: object, code: int = 0) -> Iterator[tuple[Server, "subprocess.Popen[str]"]]:
    """`neuscale serve` as a process of its own, ended by SIGTERM."""
    environment = {**os.environ, "NEUSCALE_DATA": str(odd.data), "NEUSCALE_RUNS": str(odd.runs)}
    environment["OMP_WAIT_POLICY"] = "passive"  # beside other tests: no line about busy cores
    process = subprocess.Popen(
        [sys.executable, "-m", "neuscale", "serve", *map(str, words), "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        found = re.search(r"http://127\.0\.0\.1:(\d+) is the page", lines[1])
        assert found is not None, (lines, process.stderr.read())
        yield Server(int(found[1])), process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip(), err) == (code, "stopped", "")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(odd: Odd) -> Iterator[Server]:
    with served(odd, "odd") as (found, _):
        yield found


def predictions(command: Command, file: Path, top: int = 5) -> list[tuple[str, float]]:
    """Classes and probabilities that `neuscale predict` prints for a file."""
    (image,) = command("predict", "odd", file, "--top", top, "--json").json["images"]
    return [(each["class"], each["probability"]) for each in image["predictions"]]


def answered(answer: tuple[int, Any]) -> list[tuple[str, float]]:
    status, found = answer
    assert status == 200, found
    return [(each["class"], each["probability"]) for each in found["predictions"]]


def same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> bool:
    if [name for name, _ in found] != [name for name, _ in expected]:
        return False
    return [share for _, share in found] == pytest.approx([share for _, share in expected], abs=1e-5)


def test_it_answers_as_predict_does(command: Command, odd: Odd, server: Server) -> None:
    for file in odd.files()[::7]:
        content = file.read_bytes()
        assert same(answered(server.ask("/predict", content)), predictions(command, file))
        assert same(answered(server.ask("/predict?top=2", content)), predictions(command, file, 2))
    assert len(answered(server.ask("/predict?top=1000", content))) == 7


def test_an_answer_is_sent_at_once() -> None:
    """Nagle's algorithm would hold each answer's second packet back for 40 ms."""
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()) as client:
        accepted, _ = listening.accept()
        asyncio.run(_with_transport(accepted))
        client.close()


async def _with_transport(accepted: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, accepted)
    found = transport.get_extra_info("socket")
    assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    transport.close()


def test_many_at_once_get_their_own_answers(command: Command, odd: Odd, server: Server) -> None:
    """Batches are formed of them; damaged ones among them fail alone."""
    files = odd.files()
    expected = [answered(server.ask("/predict", file.read_bytes())) for file in files]
    bodies = [file.read_bytes() for file in files]
    with ThreadPoolExecutor(16) as pool:
        sent = [(i % 5 != 4, bodies[i % len(bodies)]) for i in range(200)]
        found = list(pool.map(lambda each: server.ask("/predict", each[1] if each[0] else b"no"), sent))
    for i, ((whole, _), answer) in enumerate(zip(sent, found, strict=True)):
        if whole:
            assert same(answered(answer), expected[i % len(files)]), i
        else:
            assert answer[0] == 400


def test_a_form_with_a_file_is_taken(odd: Odd, server: Server) -> None:
    """As `curl -F` and browsers send it; the field's name does not matter."""
    content = odd.files()[3].read_bytes()
    expected = answered(server.ask("/predict", content))

    def form(*parts: tuple[str, bytes]) -> tuple[int, Any]:
        body = b"".join(b"--XX\r\n%s\r\n\r\n%s\r\n" % (head.encode(), part) for head, part in parts)
        kind = "multipart/form-data; boundary=XX"
        return server.ask("/predict", body + b"--XX--\r\n", content_type=kind)

    file = 'Content-Disposition: form-data; name="picture"; filename="a.png"\r\nContent-Type: image/png'
    note = 'Content-Disposition: form-data; name="note"'
    assert answered(form((file, content))) == expected
    assert answered(form((note, b"hello"), (file, content))) == expected
    assert form((file, content), (file, content))[0] == 400
    status, found = form((note, b"hello"))
    assert (status, "there is no image" in found["error"]) == (400, True)
    status, found = server.ask("/predict", b"--YY", content_type="multipart/form-data; boundary=XX")
    assert (status, "error" in found) == (400, True)


@pytest.mark.parametrize(("path", "body", "status", "problem"), [
    ("/predict", b"GIF89a and no more", 400, "damaged"),
    ("/predict", b"", 400, "there is no image"),
    ("/predict?top=0", b"x", 400, "top: expected a whole number above 0"),
    ("/predict?top=%D9%A3", b"x", 400, "top: expected"),
    ("/predict?top=99999999999999999999", b"x", 400, "top: expected"),
    ("/predict", None, 405, "Method Not Allowed"),
    ("/../../etc/passwd", None, 404, "Not Found"),
])  # fmt: skip
def test_a_request_that_is_wrong_is_told_why(
    server: Server, path: str, body: bytes | None, status: int, problem: str
) -> None:
    found = server.ask(path, body)
    assert (found[0], problem in found[1]["error"]) == (status, True), found


def test_it_says_that_it_is_well(server: Server) -> None:
    status, found = server.ask("/health")
    assert (status, found["status"], found["classes"], found["device"]) == (200, "ok", 7, "cpu")
    assert "step-00000006" in found["model"]


def test_other_sites_cannot_use_it_through_a_browser(server: Server) -> None:
    """A page whose own name was made to lead to this machine sends that name as the host."""
    for host in ("example.org", "127.0.0.1.example.org", "localhost.example.org:80"):
        assert server.ask("/", None, host=host)[0] == 400
    assert server.ask("/", None, host=f"localhost:{server.port}")[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/", headers={"Origin": "https://example.org"})
    answer = connection.getresponse()
    assert answer.getheader("access-control-allow-origin") is None
    policy = answer.getheader("content-security-policy") or ""
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    connection.close()


@pytest.mark.parametrize("kind", ["safetensors", "torch", "onnx", "openvino"])
def test_an_exported_folder_is_served(
    command: Command, odd: Odd, tmp_path: Path, kind: str, server: Server
) -> None:
    if kind in ("onnx", "openvino"):
        pytest.importorskip("onnxruntime")
    if kind == "openvino":
        pytest.importorskip("openvino")
    folder = tmp_path / "model"
    assert command("export", "odd", "--to", kind, "--output", folder).code == 0
    content = odd.files()[5].read_bytes()
    with served(odd, folder) as (exported, _):
        found = answered(exported.ask("/predict", content))
        assert same(found, answered(server.ask("/predict", content)))


def test_requests_under_way_are_answered_before_it_ends(odd: Odd) -> None:
    content = odd.files()[0].read_bytes()
    with served(odd, "odd") as (server, process):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content[:-5])
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        connection.sendall(content[-5:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        connection.close()


def test_a_port_that_is_taken_and_models_that_are_not_there(
    command: Command, odd: Odd, server: Server, tmp_path: Path
) -> None:
    said = command("serve", "odd", "--port", server.port)
    assert said.code == 1
    assert f"127.0.0.1, port {server.port}: cannot be listened on (Address already in use)." in said.words
    assert "Choose another --port or --host." in said.words
    for words, problem in (
        (["--port", 70_000], "--port 70000: expected 0 to 65535"),
        (["--host", "127.0.0..1"], "127.0.0..1, port 8000: cannot be listened on"),
        (["--host", "nowhere.invalid"], "nowhere.invalid, port 8000: cannot be listened on"),
        (["--host", "192.0.2.1"], "192.0.2.1, port 8000: cannot be listened on"),  # of RFC 5737: no one's
    ):
        said = command("serve", "odd", *words)
        assert (said.code, problem in said.words) == (1, True), said.words
    assert command("serve", "nothing").code == 2
    (tmp_path / "model.json").write_text('{"file": "model.exe"}')
    said = command("serve", tmp_path)
    assert (said.code, "is not an exported model's record" in said.words) == (1, True)
    folder = tmp_path / "model"
    assert command("export", "odd", "--to", "safetensors", "--output", folder).code == 0
    said = command("serve", folder, "--checkpoint", "last")
    assert (said.code, "an exported model has no checkpoints" in said.words) == (2, True)
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert command("serve", folder).code == 1


def test_every_option_reaches_the_server(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("neuscale.serving.server.serve", lambda *words: seen.append(words))
    limits = ["--max-batch", 3, "--max-megabytes", 0.5, "--timeout", 7]
    words = ["--checkpoint", "last", "--weights", "raw", "--device", "cpu", "--host", "0.0.0.0", "--port", 0]
    said = command("serve", "odd", *limits, *words)
    assert said.code == 0, said.err
    ((model, found, _, host),) = seen
    assert (found.max_batch, found.max_bytes, found.timeout, host) == (3, 500_000, 7.0, "0.0.0.0")
    assert (model.title.rpartition(" ")[2], model.device) == ("step-00000009", "cpu")
    assert "all who reach this machine can use the model" in said.words
    assert command("serve", "odd", "--device", "abacus").code == 2
    assert command("serve", "odd", "--timeout", "inf").code == 2
    assert command("serve", "odd", "--weights", "all").code == 2


def test_without_its_packages_it_says_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = command("serve", "odd")
    assert said.code == 2
    assert (
        "serve: uvicorn is not installed. Install what it needs: pip install 'neuscale[serve]'" in said.words
    )
