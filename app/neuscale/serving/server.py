"""HTTP server of one model: a page to drop images on, JSON at /predict, /health."""

import asyncio
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from neuscale.errors import UserError
from neuscale.hardware import available_cores
from neuscale.serving.batcher import Batcher, Busy
from neuscale.serving.model import NotAnImage, ServedModel
from neuscale.version import __version__

# Batches that may wait behind the one that is computed; more requests are turned away at once.
WAITING_BATCHES = 8

# Of a multipart body besides the image: its headers, and fields that nobody asked for.
_FORM_OVERHEAD = 10_000

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src 'self' blob: data:",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    `max_batch`: images that the model gets at once. `max_bytes`: of an image file. `timeout`: seconds from a
    request to its answer. `top`: classes in an answer that asks for no number of them.
    """

    max_batch: int = 32
    max_bytes: int = 20_000_000
    timeout: float = 30.0
    top: int = 5


def create_app(model: ServedModel, limits: Limits, hosts: list[str]) -> Starlette:
    """The ASGI application; `hosts`: the names that requests may call the server by ("*": any)."""
    page = jinja2.Environment(autoescape=True).from_string(
        files("neuscale.serving").joinpath("page.html").read_text(encoding="utf-8")
    )
    batcher = Batcher(model.logits, limits.max_batch, WAITING_BATCHES * limits.max_batch)
    decoders = ThreadPoolExecutor(available_cores(), thread_name_prefix="decode")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with batcher:
            yield
        decoders.shutdown(wait=False, cancel_futures=True)

    open_requests: set[Request] = set()
    too_busy = HTTPException(503, "too many requests are waiting", {"Retry-After": "1"})

    async def index(_: Request) -> Response:
        html = page.render(title=model.title, classes=len(model.classes), limits=limits)
        return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY})

    async def health(_: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok" if batcher.works else "the model's thread has ended",
                "model": model.title,
                "device": model.device,
                "classes": len(model.classes),
                "neuscale": __version__,
            },
            200 if batcher.works else 503,
        )

    async def predict(request: Request) -> Response:
        top = _top(request, limits.top)
        # Counted before the image is read: what is turned away costs no memory.
        if len(open_requests) >= (WAITING_BATCHES + 1) * limits.max_batch:
            raise too_busy
        open_requests.add(request)
        try:
            async with asyncio.timeout(limits.timeout):
                content = await _image(request, limits.max_bytes)
                loop = asyncio.get_running_loop()
                image = await loop.run_in_executor(decoders, model.decode, content)
                logits = await batcher.logits(image)
        except TimeoutError:
            raise HTTPException(504, f"no answer within {limits.timeout:g} seconds") from None
        except NotAnImage as error:
            raise HTTPException(400, str(error)) from None
        except Busy:
            raise too_busy from None
        except ClientDisconnect:
            return Response(status_code=499)
        finally:
            open_requests.discard(request)
        return JSONResponse({"predictions": model.answer(logits, top)})

    return Starlette(
        routes=[
            Route("/", index),
            Route("/health", health),
            Route("/predict", predict, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
        lifespan=lifespan,
    )


def _top(request: Request, default: int) -> int:
    text = request.query_params.get("top", str(default))
    if not (text.isascii() and text.isdigit() and int(text[:9]) >= 1 and len(text) < 10):
        raise HTTPException(400, "top: expected a whole number above 0")
    return int(text)


async def _image(request: Request, most: int) -> bytes:
    """The image file in a request: its body, or the one file of a form."""
    form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    allowed = most + (_FORM_OVERHEAD if form else 0)
    too_large = HTTPException(413, f"the image is larger than {most:,} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > allowed:
        raise too_large
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > allowed:
            raise too_large
    content = await _of_form(request, bytes(body)) if form else bytes(body)
    if len(content) > most:
        raise too_large
    if not content:
        raise HTTPException(400, "there is no image: send its file as the body, or as the one file of a form")
    return content


async def _of_form(request: Request, body: bytes) -> bytes:
    """The one file of a multipart form, whatever its field is called."""

    async def again() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, again(), max_files=2, max_fields=20)
    parser.spool_max_size = len(body) + 1  # never to the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise HTTPException(400, f"the form cannot be read ({error})") from None
    uploads = [value for _, value in form.multi_items() if not isinstance(value, str)]
    if len(uploads) > 1:
        raise HTTPException(400, "there is more than one file: send one image a request")
    return await uploads[0].read() if uploads else b""


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failed(_: Request, __: Exception) -> Response:
    """The traceback is in the server's log."""
    return JSONResponse({"error": "the model failed on this image; the server's log says why"}, 500)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any that is free. Raises UserError where it cannot be had."""
    if port > 65535:  # getaddrinfo would take its lower 16 bits
        raise UserError(f"`port` {port}: expected 0 to 65535.")
    listening = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Not socket.create_server: asyncio turns off Nagle's algorithm, which delays answers by 40 ms, only
        # for sockets whose protocol is named.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
        return listening
    except (OSError, UnicodeError) as error:  # the latter for a host that no name can be
        if listening is not None:
            listening.close()
        number = getattr(error, "errno", None) or 0  # below 0: the resolver's own
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{host}, port {port}: cannot be listened on ({reason}).", "Choose another `port` or `host`."
        ) from error


def is_loopback(listening: socket.socket) -> bool:
    """True for a socket that only this machine reaches."""
    address = ipaddress.ip_address(listening.getsockname()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def create_server(model: ServedModel, limits: Limits, listening: socket.socket, host: str) -> uvicorn.Server:
    """The HTTP server of `create_app`.

    On loopback, requests must call the server by a loopback name: a page of another site whose name
    resolves to this address is turned away.
    """
    # A form that cannot be read is told to who sent it.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # "[": what older versions of Starlette make of an IPv6 address, which no name can resolve to.
    names = ["localhost", "127.0.0.1", "[::1]", "[", host.lower()] if is_loopback(listening) else ["*"]
    config = uvicorn.Config(
        create_app(model, limits, names),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, int(limits.timeout)),
        server_header=False,
    )
    return uvicorn.Server(config)


def serve(model: ServedModel, limits: Limits, listening: socket.socket, host: str) -> None:
    """Answer requests until SIGINT or SIGTERM; requests under way are finished first."""
    server = create_server(model, limits, listening, host)
    # uvicorn raises the signal once more after its shutdown, for the handlers that were there before.
    before = {number: signal.signal(number, _ended) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(*_: object) -> None:
    """A signal that was acted upon."""
