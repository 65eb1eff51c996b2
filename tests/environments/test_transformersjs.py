"""An Optimum artifact generates the engine's codes with transformers.js in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import write_bundle
from tests.environments.build import ROOT
from tinymusician.artifacts.manifest import publish
from tinymusician.artifacts.pull import PullClient
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.sources import FolderSource
from tinymusician.artifacts.store import LocalStore
from tinymusician.models.musicgen import load_musicgen, model_location
from tinymusician.quantize.optimum import apply_to_optimum, export_optimum
from tinymusician.quantize.precision import load_plan
from tinymusician.runtime.generator import GenerationRequest, load_generator

pytestmark = [pytest.mark.slow, pytest.mark.environments]

PROMPT, FRAMES, GUIDANCE = "a fast fiddle reel", 60, 3.0
HERE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def node() -> Path:
    """A folder with the script and transformers.js beside it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node is here")
    folder = Path(os.environ.get("TMCTL_ENVIRONMENTS", ROOT / ".environments")) / "node"
    folder.mkdir(parents=True, exist_ok=True)
    for path in HERE.iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if not (folder / "node_modules" / "@huggingface" / "transformers").is_dir():
        variables = {**os.environ, "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"}
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True, env=variables)
    return folder


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The band's student in Optimum's layout, published, and pulled to a device's folder."""
    folder = tmp_path_factory.mktemp("band")
    export_optimum(model_location("band-small"), folder / "graphs")
    apply_to_optimum(load_plan("float32"), folder / "graphs", folder / "bundle")
    store = LocalStore(folder / "store")
    facts = {"recipe": {}, "lineage": {}, "metrics": {}, "licence": "Apache-2.0"}
    manifest = publish(store, folder / "bundle", name="band-optimum", kind="optimum", **facts)
    registry = ReleaseRegistry(store, folder / "keys")
    root = registry.create().public_keys("root")[0]
    registry.release(manifest, "stable", {})
    client = PullClient("band-optimum@stable", folder / "device", [FolderSource(folder / "store")], root)
    return folder / "device" / client.pull().folder


def test_node_plays_the_engines_codes(node: Path, pulled: Path, tmp_path: Path) -> None:
    words = ["node", "generate.mjs", str(pulled), PROMPT, str(FRAMES), str(GUIDANCE)]
    ended = subprocess.run(words, cwd=node, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    result = np.array(said["codes"]).reshape(said["dims"])[0]

    location = model_location("band-small")
    write_bundle(load_musicgen(str(location)), location / "tokenizer.json", tmp_path / "bundle")
    generator = load_generator(tmp_path / "bundle")
    track = generator.start(
        GenerationRequest(PROMPT, FRAMES / generator.codec.shape.frame_rate, 0, GUIDANCE, 0.0, 0, 1.0, windows=False)
    )
    while not track.is_finished:
        generator.engine.step()
    assert track.error is None
    # While the later codebooks come to their end, MusicGen reads pads of the earlier ones; transformers.js reads what
    # it went on to play there. Codes of the steps before that depend on neither.
    num_codebooks = np.arange(result.shape[0])[:, None]
    same = np.arange(FRAMES) + num_codebooks < FRAMES
    assert result.shape == track.codes.shape
    np.testing.assert_array_equal(result[same], track.codes[same])
