"""Bundles that open, and bundles that must not be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import write_bundle
from tinymusician.errors import BundleError
from tinymusician.models.musicgen import load_musicgen
from tinymusician.runtime.bundle import open_bundle
from tinymusician.runtime.generator import load_generator

PROMPT = "a slow fiddle reel"


class TestBundles:
    """What must not be loaded."""

    @pytest.fixture
    def folder(self, tmp_path: Path, tiny_musicgen: Path) -> Path:
        write_bundle(load_musicgen(str(tiny_musicgen)), tiny_musicgen / "tokenizer.json", tmp_path)
        return tmp_path

    def change(self, folder: Path, **changes: Any) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def test_valid_bundle(self, folder: Path) -> None:
        bundle = open_bundle(folder)
        assert bundle.manifest.size == sum(
            path.stat().st_size for path in folder.iterdir() if path.suffix != ".json" or path.name == "tokenizer.json"
        )
        assert not bundle.has("codec_encoder")
        with pytest.raises(BundleError, match="has no codec encoder"):
            bundle.path("codec_encoder")

    def test_a_truncated_graph(self, folder: Path) -> None:
        data = (folder / "decoder.onnx").read_bytes()
        (folder / "decoder.onnx").write_bytes(data[:-7])
        with pytest.raises(
            BundleError, match=rf"decoder.onnx has {len(data) - 7} bytes; the manifest says {len(data)}"
        ):
            open_bundle(folder)

    def test_an_altered_graph(self, folder: Path) -> None:
        data = bytearray((folder / "cross.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "cross.onnx").write_bytes(bytes(data))
        with pytest.raises(BundleError, match=r"cross\.onnx was altered"):
            open_bundle(folder)

    def test_a_missing_file(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(BundleError, match=r"tokenizer.json cannot be read \(No such file"):
            open_bundle(folder)

    @pytest.mark.parametrize("path", ["/etc/passwd", "../decoder.onnx", "a/../../b", "a\\b", "C:/x", ""])
    def test_path_outside_the_folder(self, folder: Path, path: str) -> None:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        self.change(folder, files=[{**files[0], "path": path}, *files[1:]])
        with pytest.raises(BundleError, match=r"is outside the bundle.s folder|is no name of a file"):
            open_bundle(folder)

    def test_another_format(self, folder: Path) -> None:
        self.change(folder, format=2)
        with pytest.raises(BundleError, match="format 2; this version reads format 1"):
            open_bundle(folder)

    def test_a_wrong_role(self, folder: Path) -> None:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        self.change(folder, files=[{**files[0], "role": "drummer"}, *files[1:]])
        with pytest.raises(BundleError, match=r"files\.0\.role"):
            open_bundle(folder)
        self.change(folder, files=files[1:])
        with pytest.raises(BundleError, match="0 files with role 'text_encoder'; exactly one is needed"):
            open_bundle(folder)

    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"manifest.json cannot be read"):
            open_bundle(tmp_path)
        (tmp_path / "manifest.json").write_text("{")
        with pytest.raises(BundleError, match="Invalid JSON"):
            open_bundle(tmp_path)

    def test_file_that_is_not_a_graph(self, folder: Path) -> None:
        """Its digest is right."""
        from tinymusician.runtime.bundle import describe_files

        (folder / "decoder.onnx").write_bytes(b"no graph")
        entry = describe_files(folder, [("decoder.onnx", "decoder", "float32")])[0].model_dump()
        files = json.loads((folder / "manifest.json").read_text())["files"]
        self.change(folder, files=[entry if file["role"] == "decoder" else file for file in files])
        with pytest.raises(BundleError, match=r"decoder\.onnx is no ONNX graph") as caught:
            load_generator(folder)
        assert "\n" not in str(caught.value)

    def test_unavailable_provider(self, folder: Path) -> None:
        with pytest.raises(
            BundleError, match="provider 'CoreMLExecutionProvider': not available; this ONNX Runtime has"
        ):
            load_generator(folder, provider="CoreMLExecutionProvider")

    def test_unsupported_provider(self, folder: Path) -> None:
        self.change(folder, providers=["CoreMLExecutionProvider"])
        with pytest.raises(BundleError, match="'CPUExecutionProvider': the bundle allows CoreMLExecutionProvider"):
            load_generator(folder)

    def test_swapped_graphs(self, folder: Path) -> None:
        """Sizes and digests are right, so only the graphs' inputs can tell."""
        files = json.loads((folder / "manifest.json").read_text())["files"]
        other = {"decoder": "codec_decoder", "codec_decoder": "decoder"}
        self.change(folder, files=[{**file, "role": other.get(file["role"], file["role"])} for file in files])
        with pytest.raises(BundleError, match=r"codec_decoder\.onnx is not a decoder; it has no input"):
            load_generator(folder)
