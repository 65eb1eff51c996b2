"""The page in a real browser with the house band: from a prompt to audio, by mouse and by keyboard."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from serve.api_keys import edit_keys, new_key
from tests.endpoint import Endpoint, endpoint
from tests.prefix_proxy import prefix_proxy

pytestmark = pytest.mark.slow
CONTRASTS = (Path(__file__).parents[1] / "contrasts.js").read_text()
COUNT_SOUNDS = "window.energy = 0; const create = AudioContext.prototype.createBufferSource; " + (
    "AudioContext.prototype.createBufferSource = function () { const node = create.call(this), start = node.start; "
    "node.start = function (...at) { window.energy += node.buffer.getChannelData(0).reduce((s, x) => s + x * x, 0); "
    "return start.apply(node, at) }; return node }"
)
"""Adds up the energy of everything that the page lets sound."""


@pytest.fixture(scope="module")
def here(band: Path) -> Iterator[Endpoint]:
    with endpoint(model=str(band), limits={"seconds": 30, "max_concurrent_requests": 2}) as result:
        yield result


@pytest.fixture
def page(browser: Browser, here: Endpoint) -> Iterator[Page]:
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script(COUNT_SOUNDS)
    page.goto(here.url)
    yield page
    page.close()
    assert not faults


def test_from_words_to_sound(page: Page, here: Endpoint) -> None:
    expect(page.locator("#bundle")).to_contain_text("test")
    page.get_by_role("button", name="a slow waltz for flute").click()
    page.get_by_label("Length").fill("3")
    page.get_by_label("Seed").fill("11")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("heading", name="a slow waltz for flute")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download WAV").click()
    played = here.generate(prompt="a slow waltz for flute in G major", seconds=3, seed=11, guidance=3, temperature=1)
    with (
        wave.open(io.BytesIO(Path(download.value.path()).read_bytes())) as file,
        wave.open(io.BytesIO(played.content)) as streamed,
    ):
        ours, theirs = (np.frombuffer(one.readframes(10**6), "<i2") for one in (file, streamed))
        assert file.getframerate() == streamed.getframerate() == 16_000
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    energy = float(np.square(theirs / 32767).sum())
    assert page.evaluate("window.energy") == pytest.approx(energy, rel=1e-3)
    assert drawn(page, "spectrogram") > 100
    assert drawn(page, "wave") >= 3
    facts = page.locator("#facts").inner_text()
    assert "11" in facts
    assert played.headers["X-Bundle"][:12] in facts


def test_position_moves_by_seconds_and_is_spoken(page: Page) -> None:
    page.get_by_label("Describe the music").fill("a slow waltz")
    page.get_by_label("Length").fill("3")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("link", name="Download WAV")).to_be_visible(timeout=30_000)
    if page.get_by_role("button", name="Pause").is_visible():
        page.get_by_role("button", name="Pause").click()
    seek = page.get_by_label("Position")
    seek.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(seek).to_have_value("1")
    expect(seek).to_have_attribute("aria-valuetext", "1 of 3 seconds")


def drawn(page: Page, canvas: str) -> int:
    """How many colours a canvas shows."""
    return page.evaluate(
        "id => { const c = document.getElementById(id), { data } = c.getContext('2d').getImageData(0, 0, c.width, "
        "c.height); return new Set(new Uint32Array(data.buffer)).size }",
        canvas,
    )


def test_by_keyboard_alone_and_stopped_half_way(page: Page, here: Endpoint) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("a lively jig")
    page.get_by_label("Length").fill("30")
    page.get_by_label("Describe the music").press("Enter")
    expect(page.locator("#status")).to_contain_text("Generating and playing")
    stop = page.get_by_role("button", name="Stop")
    stop.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_focused()
    expect(page.get_by_role("link", name="Download WAV")).to_be_visible()
    expect(page.get_by_role("button", name="Play again")).to_be_visible()  # the sound has stopped as well
    assert float(page.get_by_label("Position").get_attribute("max") or 30) < 30, "the clip is shorter now"
    assert here.replica._bundle.loop.num_requests == 0 or page.wait_for_timeout(2000) is None
    assert here.replica._bundle.loop.num_requests == 0


def test_history_survives_a_reload(page: Page) -> None:
    for seed in ("1", "2"):
        page.get_by_label("Describe the music").fill(f"a march number {seed}")
        page.get_by_label("Length").fill("1")
        page.get_by_label("Seed").fill(seed)
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("#history li")).to_have_count(int(seed))
    page.reload()
    expect(page.locator("#history li .what")).to_contain_text(["a march number 2", "a march number 1"])
    page.get_by_role("button", name="Play a march number 1").click()
    expect(page.get_by_role("heading", name="a march number 1")).to_be_visible()
    page.wait_for_function("window.energy > 0")
    page.get_by_role("button", name="Use a march number 1").click()
    assert page.get_by_label("Seed").input_value() == "1"
    page.get_by_role("button", name="Delete a march number 1").click()
    expect(page.locator("#history li")).to_have_count(1)


def test_errors_name_their_location(page: Page) -> None:
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#prompt-wrong")).to_contain_text("Enter a description")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.get_by_label("Describe the music").fill("a march")
    page.get_by_label("Seed").fill("eleven")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#seed-wrong")).to_contain_text("whole number")
    expect(page.locator("#prompt-wrong")).to_be_hidden()


def test_page_retries_an_overloaded_server(page: Page, here: Endpoint) -> None:
    held = [here.opened(prompt="a march", seconds=30) for _ in range(2)]
    page.get_by_label("Describe the music").fill("a reel")
    page.get_by_label("Length").fill("1")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Retrying in")
    for one in held:
        one.close()
    expect(page.get_by_role("heading", name="a reel")).to_be_visible(timeout=60_000)


def test_lost_server_is_reported(page: Page, browser: Browser) -> None:
    page.get_by_label("Describe the music").fill("a reel")
    page.context.set_offline(True)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#status")).to_contain_text("does not answer")
    page.context.set_offline(False)


def test_page_prompts_for_an_api_key_once(browser: Browser, band: Path, tmp_path: Path) -> None:
    text, key = new_key("page", 60, 4, None)
    with edit_keys(tmp_path / "keys.json", missing=True) as keys:
        keys.append(key)
    with endpoint(model=str(band), api_keys=str(tmp_path / "keys.json")) as shut:
        page = browser.new_page()
        page.goto(shut.url)
        expect(page.locator("#bundle")).to_contain_text("This server requires an API key")
        page.get_by_label("Describe the music").fill("a reel")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("#status")).to_have_text(
            "This server needs an API key: enter the one that its owner gave you."
        )
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill(text)
        page.get_by_label("API key").press("Tab")
        expect(page.locator("#bundle")).to_contain_text("test")
        page.reload()
        expect(page.locator("#bundle")).to_contain_text("test")
        page.close()


def test_page_works_behind_the_path_of_a_proxy(browser: Browser, here: Endpoint) -> None:
    with prefix_proxy(here.url, "/music") as url:
        page = browser.new_page()
        page.goto(f"{url}/")
        page.get_by_label("Describe the music").fill("a reel")
        page.get_by_label("Length").fill("1")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.get_by_role("link", name="Download WAV")).to_be_visible(timeout=30_000)
        page.get_by_label("Generate on this device").check()
        expect(page.locator("#device-note")).to_contain_text("ready in", timeout=60_000)
        page.goto(f"{url}/docs")
        expect(page.get_by_text("/v1/audio/generations")).to_be_visible(timeout=30_000)
        page.close()


def test_page_files_are_revalidated(here: Endpoint) -> None:
    first = requests.get(f"{here.url}/main.js", timeout=10)
    assert first.headers["Cache-Control"] == "no-cache"
    again = requests.get(f"{here.url}/main.js", headers={"If-None-Match": first.headers["ETag"]}, timeout=10)
    assert (again.status_code, again.headers["Cache-Control"]) == (304, "no-cache")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_it_fits_and_can_be_read(browser: Browser, here: Endpoint, scheme: str, width: int) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    page.goto(here.url)
    page.get_by_label("Describe the music").fill("a reel")
    page.get_by_label("Length").fill("1")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("link", name="Download WAV")).to_be_visible(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for text, ratio in page.evaluate(CONTRASTS):
        assert ratio >= 4.5, (text, ratio)
    page.close()
