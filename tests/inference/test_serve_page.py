"""The page of `neuscale serve`, in a real browser: choosing, dropping and pasting images."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from .conftest import Odd

pytest.importorskip("playwright")
pytest.importorskip("uvicorn")

from playwright import sync_api

from .test_serve import Server, answered, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def page_and_server(odd: Odd) -> Iterator[tuple[Any, Server]]:
    with served(odd, "odd") as (server, _), sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(30_000)
        yield page, server
        browser.close()


@pytest.fixture
def page(page_and_server: tuple[Any, Server]) -> Iterator[Any]:
    """The page, opened anew; whatever it complains about fails the test."""
    found, server = page_and_server
    complaints: list[str] = []
    elsewhere: list[str] = []
    address = f"http://127.0.0.1:{server.port}/"

    def hear(message: Any) -> None:
        if message.type == "error" and "400 (Bad Request)" not in message.text:
            complaints.append(message.text)

    def watch(request: Any) -> None:
        if not request.url.startswith((address, "blob:", "data:")):
            elsewhere.append(request.url)

    found.on("console", hear)
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", watch)
    found.goto(address)
    yield found
    assert complaints == [] and elsewhere == []
    for event, handler in (("console", hear), ("request", watch)):
        found.remove_listener(event, handler)


def shown(page: Any, count: int) -> list[dict[str, Any]]:
    """The answers on the page, the newest first, once all of them are there."""
    page.locator("#answers li :is(table, .bad)").nth(count - 1).wait_for()
    assert page.locator("#answers li").count() == count
    found: list[dict[str, Any]] = page.evaluate(
        """[...document.querySelectorAll('#answers li')].map(item => ({
            name: item.querySelector('.name').textContent,
            picture: item.querySelector('img')?.naturalWidth ?? 0,
            error: item.querySelector('.bad')?.textContent ?? '',
            rows: [...item.querySelectorAll('tr')].map(row => [
                row.querySelector('th').textContent, row.querySelector('.share').textContent])
        }))"""
    )
    return found


def test_chosen_files_get_the_answers_of_the_server(
    page: Any, page_and_server: tuple[Any, Server], odd: Odd
) -> None:
    _, server = page_and_server
    files = odd.files()[:12:5]
    page.set_input_files("#files", [str(file) for file in files])
    answers = shown(page, len(files))
    for file, answer in zip(reversed(files), answers, strict=True):
        expected = answered(server.ask("/predict", file.read_bytes()))
        assert answer["name"] == file.name
        assert answer["rows"] == [[name, f"{100 * share:.1f}%"] for name, share in expected]
        assert answer["picture"] == 14


def test_a_file_that_is_no_image_is_told_beside_the_others(page: Any, odd: Odd) -> None:
    good = {"name": "a.png", "mimeType": "image/png", "buffer": odd.files()[0].read_bytes()}
    bad = {"name": "<b>bold</b>.png", "mimeType": "image/png", "buffer": b"no image"}
    page.set_input_files("#files", [bad, good])
    newest, oldest = shown(page, 2)
    assert (newest["error"], len(newest["rows"])) == ("", 5)
    assert oldest["name"] == "<b>bold</b>.png", "a file's name is text, not HTML"
    assert "not an image" in oldest["error"]


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropped_and_pasted_images_are_classified(page: Any, odd: Odd, event: str) -> None:
    content = list(odd.files()[2].read_bytes())
    page.evaluate(
        """([event, bytes]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], 'dragged.png', {type: 'image/png'}));
            const target = event == 'drop' ? document.getElementById('drop') : document;
            target.dispatchEvent(event == 'drop'
                ? new DragEvent('drop', {dataTransfer: files, bubbles: true, cancelable: true})
                : new ClipboardEvent('paste', {clipboardData: files, bubbles: true}));
        }""",
        [event, content],
    )
    (answer,) = shown(page, 1)
    assert (answer["name"], answer["picture"], len(answer["rows"])) == ("dragged.png", 14, 5)


def test_the_keyboard_reaches_it(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    outline = page.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle")
    assert outline == "solid", "one sees where the focus is"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_colour_schemes(page: Any, odd: Odd, tmp_path: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 700})
    page.set_input_files("#files", [str(odd.files()[0])])
    shown(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("h1").screenshot(path=tmp_path / "heading.png")
    values = np.asarray(Image.open(tmp_path / "heading.png").convert("L"))
    ground = int(np.bincount(values.ravel()).argmax())
    assert (ground > 200) == (scheme == "light")
    assert np.abs(values.astype(int) - ground).max() > 150, "text stands out from its ground"
