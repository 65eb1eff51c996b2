"""Questions on the page: by the server and on the device, about a file, a recording, and a clip that was generated."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect

from tests.endpoint import Endpoint, endpoint
from tests.unit.test_answers import COLOURS
from tests.unit.test_question_answerer import MANY, new_model, wave, write_bundle_of_its_words
from tinymusician.runtime.question_answerer import QuestionAnswerer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MICROPHONE = (
    "navigator.mediaDevices.getUserMedia = async () => { const context = new AudioContext(), tone = "
    "context.createOscillator(), out = context.createMediaStreamDestination(); tone.connect(out); tone.start(); "
    "return out.stream }"
)
"""A microphone that hears a tone."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle_of_its_words(folder, new_model(), samples_of(2.5), "What do you hear?")
    return folder


@pytest.fixture(scope="module")
def here(band: Path, bundle: Path) -> Iterator[Endpoint]:
    made = subprocess.run(["make", "-s", "page"], cwd=ROOT, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"npm does not give what the page needs: {made.stderr.strip()[-300:]}")
    with endpoint(model=str(band), questions_model=str(bundle)) as result:
        yield result


@pytest.fixture
def page(browser: Browser, here: Endpoint) -> Iterator[Page]:
    context = browser.new_context(service_workers="block")
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script(MICROPHONE)
    page.goto(here.url)
    expect(page.get_by_role("heading", name="Ask about music")).to_be_visible()
    yield page
    context.close()
    assert not faults


def samples_of(seconds: float) -> np.ndarray:
    """What is read of a clip's file."""
    return np.asarray(np.round(wave(seconds) * 32767) / 32767, np.float32)


def write_clip(folder: Path, seconds: float) -> tuple[Path, np.ndarray]:
    samples = samples_of(seconds)
    soundfile.write(folder / "clip.wav", samples, 16_000, subtype="PCM_16")
    return folder / "clip.wav", samples


def ask(page: Page, clip: Path, question: str, options: str) -> dict[str, float]:
    """The bars of the answer to a question."""
    page.locator("#question-file").set_input_files(clip)
    expect(page.locator("#question-note")).to_contain_text("clip.wav")
    page.get_by_label("Question").fill(question)
    page.get_by_label("Possible answers").fill(options)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answers .note")).to_be_visible(timeout=60_000)
    expect(page.locator("#question-status")).to_have_text("")
    bars = page.locator("#answers li").evaluate_all(
        "items => items.map((item) => [item.firstChild.textContent, item.querySelector('meter').value])"
    )
    return dict(bars)


def expected(bundle: Path, samples: np.ndarray, question: str, options: tuple[str, ...]) -> dict[str, float]:
    """All options and "cannot tell", as shares of everything."""
    answerer = QuestionAnswerer(bundle)
    answer = answerer.ask(answerer.read(samples), question, options)
    shares = {option.text: option.probability * (1 - answer.cannot_tell) for option in answer.options}
    return shares | {"cannot tell": answer.cannot_tell} if answer.cannot_tell >= 0.005 else shares


@pytest.mark.parametrize("where", ["the server", "this device"])
def test_bars_are_the_engines_probabilities(page: Page, bundle: Path, tmp_path: Path, where: str) -> None:
    """Three windows and an order of options of our own; twelve values, which the prompt does not list."""
    if where == "this device":
        page.get_by_label("Generate on this device").check()
        expect(page.locator("#device-note")).to_contain_text("ready in", timeout=60_000)
    clip, samples = write_clip(tmp_path, 2.5)
    bars = ask(page, clip, "Which colour?", "\n".join(reversed(COLOURS)))
    assert where in page.locator("#answers .note").inner_text()
    assert "3 windows" in page.locator("#answers .note").inner_text()
    assert bars == pytest.approx(expected(bundle, samples, "Which colour?", COLOURS[::-1]), abs=1e-3)
    short, samples = write_clip(tmp_path, 1.0)
    many = ask(page, short, "which shade", "")  # of a window
    assert many == pytest.approx(expected(bundle, samples, "which shade", ()), abs=1e-3)
    assert many.keys() - {"cannot tell"} == set(MANY)
    tints = ask(page, short, "Is it dark or light?", "dark\nlight")  # by the sums over the shades
    assert tints == pytest.approx(expected(bundle, samples, "Is it dark or light?", ("dark", "light")), abs=1e-3)
    words = ask(page, short, "What do you hear?", "")  # in its words, which are values of an attribute
    assert words == pytest.approx(expected(bundle, samples, "What do you hear?", ()), abs=1e-3)
    ask(page, short, "Is it red?", "")
    assert page.locator("#answers h3").inner_text().startswith("Is it red?")


def test_generated_clip_and_recording_are_identified(page: Page) -> None:
    page.get_by_label("Describe the music").fill("a reel")
    page.get_by_label("Length").fill("1")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_role("link", name="Download WAV")).to_be_visible(timeout=30_000)
    page.get_by_role("button", name="What is this?").click()
    expect(page.locator("#answers h3")).to_contain_text(["colour", "shade"], timeout=30_000)
    expect(page.locator("#question-note")).to_have_text("a reel, 1.0 s")
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(1200)
    page.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#question-note")).to_contain_text("recording, 1.")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("#answers h3")).to_contain_text(["colour"], timeout=30_000)


def test_errors_say_what_to_do(page: Page, tmp_path: Path) -> None:
    status, ask_button = page.locator("#question-status"), page.get_by_role("button", name="Ask", exact=True)
    ask_button.click()
    expect(status).to_have_text("Choose a file, or record something, first.")
    (tmp_path / "notes.wav").write_text("no audio")
    page.locator("#question-file").set_input_files(tmp_path / "notes.wav")
    expect(status).to_have_text("notes.wav cannot be read as audio.")
    clip, _ = write_clip(tmp_path, 0.2)
    page.locator("#question-file").set_input_files(clip)
    expect(status).to_have_text("clip.wav lasts 0.2 s; 0.5 to 600 s are allowed.")
    clip, _ = write_clip(tmp_path, 1)
    page.locator("#question-file").set_input_files(clip)
    page.get_by_label("Possible answers").fill("flute")
    ask_button.click()
    expect(status).to_have_text("Possible answers need a question.")
    page.get_by_label("Question").fill("Which?")
    ask_button.click()
    expect(status).to_contain_text("One possible answer is no choice")
    page.get_by_label("Possible answers").fill("flute\nFlute")
    ask_button.click()
    expect(status).to_contain_text("is there twice")
