"""Generation in the browser with the house band: the engine's codes, offline use, fallbacks."""

from __future__ import annotations

import io
import re
import subprocess
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.endpoint import Endpoint, endpoint
from tests.guidance_bundles import guidance_student, write_guidance_bundle
from tinymusician.models.musicgen import model_location
from tinymusician.runtime.generator import GenerationRequest, load_generator

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROMPT = "a slow waltz for flute"
NO_SIMD = "const whole = WebAssembly.validate; WebAssembly.validate = (bytes) => bytes.length > 40 && whole(bytes)"
CLOCK = "const later = performance.now.bind(performance); performance.now = () => {speed} * later();\n"


@pytest.fixture(scope="module")
def here(band: Path) -> Iterator[Endpoint]:
    made = subprocess.run(["make", "-s", "page"], cwd=ROOT, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"npm does not give what the page needs: {made.stderr.strip()[-300:]}")
    with endpoint(model=str(band)) as result:
        yield result


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Its devices think themselves ten times as fast as they are: a busy machine is not taken for a slow one."""
    context = browser.new_context(service_workers="block")
    context.route("**/device/worker.js", clocked(0.1))
    yield context
    context.close()


def clocked(speed: float) -> Callable[[Route], None]:
    """Serve a script with a clock that runs at `speed`."""

    def serve(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=CLOCK.format(speed=speed) + answer.text())

    return serve


@pytest.fixture
def page(context: BrowserContext, here: Endpoint) -> Page:
    page = context.new_page()
    page.goto(here.url)
    expect(page.locator("#bundle")).to_contain_text("test")
    return page


SETTLED = re.compile("ready in|cannot generate")


def switch_on(page: Page) -> None:
    page.get_by_label("Generate on this device").check()
    ready(page)


def ready(page: Page) -> None:
    expect(page.locator("#device-note")).to_have_text(SETTLED, timeout=60_000)
    expect(page.locator("#device-note")).to_contain_text("ready in")


def play(page: Page, seconds: int, temperature: float = 0.0) -> np.ndarray:
    page.get_by_label("Describe the music").fill(PROMPT)
    page.get_by_label("Length").fill(str(seconds))
    page.get_by_label("Temperature").fill(str(temperature))
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("link", name="Download WAV")).to_be_visible(timeout=90_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download WAV").click()
    with wave.open(io.BytesIO(Path(download.value.path()).read_bytes())) as file:
        return np.frombuffer(file.readframes(10**7), "<i2") / 32767


def generated_on(page: Page) -> str:
    """Where the audio was generated, and why the device failed, if it did."""
    texts = page.locator("#facts").inner_text(), page.locator("#device-note").inner_text()
    return "the device" if "this device" in texts[0] else f"the server: {texts[1]}"


def begin(page: Page, seconds: int) -> None:
    """Play something that is not over soon."""
    page.get_by_label("Describe the music").fill(PROMPT)
    page.get_by_label("Length").fill(str(seconds))
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Generating and playing", timeout=30_000)


@pytest.mark.parametrize("seconds", [3, 8])
def test_browser_generates_the_engines_codes(page: Page, band: Path, seconds: int) -> None:
    """Greedy codes that differ anywhere give other samples; 8 s are more than one window of 254 frames."""
    switch_on(page)
    outputs = play(page, seconds)
    expected = load_generator(band).generate(GenerationRequest(PROMPT, seconds=seconds, temperature=0.0, guidance=3.0))
    assert generated_on(page) == "the device"
    assert len(outputs) == len(expected)
    assert np.abs(outputs - np.clip(expected, -1, 1)).max() < 1e-3


def test_guidance_conditioned_student_plays_at_any_scale_of_its_range(
    context: BrowserContext, here: Endpoint, tmp_path: Path
) -> None:
    """`here` sees to it that the page's own files are there."""
    tokenizer = model_location("band-small") / "tokenizer.json"
    write_guidance_bundle(guidance_student("band-small", 2.0), tokenizer, tmp_path, seconds=4.0)
    with endpoint(model=str(tmp_path)) as conditioned:
        page = context.new_page()
        page.goto(conditioned.url)
        slider = page.get_by_label("Guidance")
        expect(slider).to_have_value("3")
        expect(slider).to_have_attribute("max", "5")  # once the page has read the model's description
        expect(slider).to_have_attribute("min", "1")
        switch_on(page)
        generator, outputs = load_generator(tmp_path), []
        for scale in (1.5, 4.0):
            slider.fill(str(scale))
            outputs.append(play(page, 2))
            expected = generator.generate(GenerationRequest(PROMPT, seconds=2, temperature=0.0, guidance=scale))
            assert generated_on(page) == "the device"
            assert np.abs(outputs[-1] - np.clip(expected, -1, 1)).max() < 1e-3
        assert not np.array_equal(*outputs)


def test_unknown_words_are_named_on_server_and_device(page: Page) -> None:
    note = page.locator("#prompt-note")
    for use_device in (False, True):
        if use_device:
            switch_on(page)
        page.get_by_label("Describe the music").fill("a slow waltz for Kazoo, kazoo and jïg!")
        page.get_by_label("Length").fill("1")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(note).to_have_text("Not known to this model: Kazoo, jïg.")
        expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled(timeout=30_000)
        page.get_by_label("Describe the music").fill("a slow waltz")
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(note).to_be_hidden()
        expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled(timeout=30_000)


def test_seed_determines_the_audio(page: Page) -> None:
    switch_on(page)
    page.get_by_label("Seed").fill("5")
    first, again = play(page, 2, 1.0), play(page, 2, 1.0)
    page.get_by_label("Seed").fill("6")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, play(page, 2, 1.0))


def test_page_works_offline_after_the_first_load(browser: Browser, here: Endpoint, band: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    with endpoint(model=str(band)) as other:
        page.goto(other.url)
        expect(page.locator("#bundle")).to_contain_text("test")
        switch_on(page)
        page.wait_for_function("navigator.serviceWorker.controller !== null")
        page.evaluate("fetch('openapi.json').then((answer) => answer.text())")  # no file of the page
        stored = "async () => (await (await caches.open('tinymusician-page')).keys()).map(({ url }) => url)"
        names = [url.rpartition("/")[2] for url in page.evaluate(stored)]
        assert "main.js" in names
        assert "openapi.json" not in names
    page.reload()
    ready(page)
    expect(page.locator("#bundle")).to_contain_text("test")
    assert np.abs(play(page, 2)).max() > 0.01
    assert generated_on(page) == "the device"
    context.close()


def test_altered_file_is_not_used(page: Page) -> None:
    page.route("**/decoder.onnx", lambda route: route.fulfill(status=200, body=b"\0" * 12_608_487))
    page.get_by_label("Generate on this device").check()
    expect(page.locator("#device-note")).to_contain_text(
        "decoder.onnx does not match its SHA-256 digest", timeout=60_000
    )
    assert not page.get_by_label("Generate on this device").is_checked()
    assert np.abs(play(page, 1)).max() > 0.01
    assert generated_on(page).startswith("the server")


def test_damaged_cache_entries_are_downloaded_again(page: Page) -> None:
    switch_on(page)
    page.evaluate(
        "async () => { const cache = await caches.open('tinymusician-bundles'); for (const one of await cache.keys())"
        " if (one.url.endsWith('cross.onnx')) await cache.put(one, new Response('rubbish')) }"
    )
    with page.expect_response("**/cross.onnx"):
        page.reload()
    ready(page)


def test_browser_without_simd_reports_it_and_falls_back_to_the_server(page: Page, here: Endpoint) -> None:
    page.add_init_script(NO_SIMD)
    page.reload()
    expect(page.locator("#bundle")).to_contain_text("test")
    page.get_by_label("Generate on this device").click()
    expect(page.locator("#device-note")).to_contain_text("no WebAssembly SIMD. The server generates instead")
    assert len(play(page, 1)) == 16_000


def test_device_with_too_little_memory_reports_it(page: Page) -> None:
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'deviceMemory', { get: () => 0.03125 })")
    page.reload()
    expect(page.locator("#bundle")).to_contain_text("test")
    page.get_by_label("Generate on this device").click()
    expect(page.locator("#device-note")).to_contain_text("GiB of memory. The server generates instead")


def test_slow_device_falls_back_to_the_server(page: Page) -> None:
    page.route("**/device/worker.js", clocked(100))
    switch_on(page)
    outputs = play(page, 4)
    expect(page.locator("#device-note")).to_contain_text("too slow")
    assert generated_on(page).startswith("the server")
    assert len(outputs) == 64_000


def test_generation_can_be_stopped_and_repeated(page: Page) -> None:
    switch_on(page)
    begin(page, 60)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    assert len(play(page, 1)) == 16_000


def test_switching_off_during_generation_falls_back(page: Page) -> None:
    switch_on(page)
    begin(page, 30)
    page.get_by_label("Generate on this device").uncheck()
    expect(page.get_by_role("link", name="Download WAV")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    assert generated_on(page).startswith("the server")


def test_disabled_device_mode_uses_the_server(page: Page) -> None:
    switch_on(page)
    page.get_by_label("Generate on this device").uncheck()
    play(page, 1)
    assert generated_on(page).startswith("the server")


def test_the_api_is_described(browser: Browser, here: Endpoint) -> None:
    """Swagger UI from this server's own files, under its content security policy; nothing comes from elsewhere."""
    page, others, faults = browser.new_page(), list[str](), list[str]()
    page.on("request", lambda request: others.append(request.url) if not request.url.startswith(here.url) else None)
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(f"{here.url}/docs")
    expect(page.get_by_role("heading", name="TinyMusician")).to_be_visible()
    page.get_by_text("/v1/audio/generations").click()
    expect(page.get_by_text("the same seed gives the same music").first).to_be_attached()
    page.close()
    assert [url for url in others if not url.startswith("data:")] == []
    assert faults == []
