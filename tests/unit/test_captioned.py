"""MusicCaps, MusicBench and folders: published layouts, missing files, audio formats."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from tinymusician.data.captioned import check_clip_folder, load_folder, load_musicbench, load_musiccaps, load_recordings
from tinymusician.errors import DataError
from tinymusician.evaluate.audio import encode_flac
from tinymusician.evaluate.reference import FileClips
from tinymusician.runtime.audio_reader import audio_seconds, read_clip, resampled

COLUMNS = (
    "ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption", "author_id",
    "is_balanced_subset", "is_audioset_eval",
)  # fmt: skip


def tone(seconds: float, rate: int = 16_000, pitch: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode_with_av(path: Path, wave_NC: np.ndarray, rate: int, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave_NC.T), format="fltp", layout="stereo")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_musiccaps(folder: Path, names: list[str], audio: dict[str, np.ndarray]) -> tuple[Path, Path]:
    """The published table (columns as on its page), and WAVs under the given file names."""
    table = folder / "musiccaps-public.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, name in enumerate(names):
            writer.writerow({
                "ytid": name, "start_s": 30, "end_s": 40, "audioset_positive_labels": "/m/04rlf",
                "aspect_list": "['slow', 'solo fiddle']", "caption": f"caption {number}, with a comma\nand a line",
                "author_id": 4, "is_balanced_subset": number % 2 == 0, "is_audioset_eval": number == 0,
            })  # fmt: skip
    (folder / "audio").mkdir()
    for name, wave in audio.items():
        soundfile.write(folder / "audio" / name, wave, 16_000)
    return table, folder / "audio"


class TestMusicCaps:
    def test_cut_uncut_and_missing_videos(self, tmp_path: Path) -> None:
        names = ["-0Gj8-vB1q4", "b", "c", "d", "e"]
        waves = {
            "-0Gj8-vB1q4.wav": tone(10, pitch=200),
            "b.flac": np.concatenate([tone(30, pitch=300), tone(15, pitch=900)]),
            "c_30_40.wav": tone(10, pitch=400),
            "[d]-[30-40].wav": tone(10, pitch=500),
        }
        result = load_musiccaps(*write_musiccaps(tmp_path, names, waves))
        assert [clip.name for clip in result.clips] == names[:4]
        assert result.clips[0].caption == "caption 0, with a comma\nand a line"
        assert result.left_out["no audio"] == [tmp_path / "audio" / "e.wav"]
        clips = FileClips(result, "MusicCaps", 4, 10.0, 0)
        assert clips.provenance["left out, no audio"] == 1
        for place, pitch in enumerate((200, 900, 400, 500)):
            wave = clips.wave(place, 16_000).wave
            assert len(wave) == 160_000
            assert np.abs(np.fft.rfft(wave)).argmax() / 10 == pytest.approx(pitch, abs=1)

    def test_subsets(self, tmp_path: Path) -> None:
        table, audio = write_musiccaps(tmp_path, ["a", "b", "c"], {f"{n}.wav": tone(1) for n in "abc"})
        assert [clip.name for clip in load_musiccaps(table, audio, "balanced").clips] == ["a", "c"]
        assert [clip.name for clip in load_musiccaps(table, audio, "eval").clips] == ["a"]

    def test_missing_audio_is_reported_with_its_path(self, tmp_path: Path) -> None:
        table, audio = write_musiccaps(tmp_path, ["a"], {})
        with pytest.raises(DataError, match=r"none of its 1 clips has its audio here, first of all .*audio/a\.wav"):
            load_musiccaps(table, audio)
        with pytest.raises(DataError, match=r"no such folder; the clips' audio belongs there"):
            load_musiccaps(table, tmp_path / "elsewhere")
        with pytest.raises(DataError, match="download the table from its dataset's page"):
            load_musiccaps(tmp_path / "none.csv", audio)
        (tmp_path / "other.csv").write_text("name,caption\nx,y\n")
        with pytest.raises(DataError, match="has no column ytid, start_s"):
            load_musiccaps(tmp_path / "other.csv", audio)


class TestMusicBench:
    def rows(self) -> list[dict[str, object]]:
        return [
            {"dataset": "MusicBench", "location": f"data_aug2/x_{n}.wav", "main_caption": f"caption {n}",
             "alt_caption": "other", "prompt_key": "The key is D major.", "beats": [[0.2, 0.7], [1, 2]],
             "bpm": 120, "chords": ["D"], "chords_time": [0.1], "key": ["D", "major"], "keyprob": [0.9]}
            for n in range(3)
        ]  # fmt: skip

    @pytest.mark.parametrize("form", ["lines", "list"])
    def test_both_forms_of_the_table(self, tmp_path: Path, form: str) -> None:
        lines = "\n".join(json.dumps(row) for row in self.rows())
        (tmp_path / "t.json").write_text(lines if form == "lines" else json.dumps(self.rows()))
        (tmp_path / "data_aug2").mkdir()
        for number in range(2):
            soundfile.write(tmp_path / "data_aug2" / f"x_{number}.wav", tone(1), 16_000)
        result = load_musicbench(tmp_path / "t.json", tmp_path)
        assert [clip.caption for clip in result.clips] == ["caption 0", "caption 1"]
        assert result.left_out["no audio"] == [tmp_path / "data_aug2" / "x_2.wav"]

    def test_invalid_tables(self, tmp_path: Path) -> None:
        for content, message in (
            ('{"location": 3}', "row 1: has no `location` and `main_caption`"),
            ('{"location": "../../etc/x.wav", "main_caption": "c"}', "leads out of"),
            ("[1]", "holds no objects"),
            ("{", "not such a table"),
        ):
            (tmp_path / "t.json").write_text(content)
            with pytest.raises(DataError, match=message):
                load_musicbench(tmp_path / "t.json", tmp_path)


class TestFolders:
    def test_pairs_of_clip_and_caption(self, tmp_path: Path) -> None:
        for name in ("b.wav", "a.flac", "alone.wav"):
            soundfile.write(tmp_path / name, tone(1), 16_000)
        (tmp_path / "a.txt").write_text("first\n")
        (tmp_path / "b.txt").write_text("second")
        result = load_folder(tmp_path)
        assert [clip.caption for clip in result.clips] == ["first", "second"]
        assert result.left_out == {"no caption": [tmp_path / "alone.wav"]}
        with pytest.raises(DataError, match=r"evaluate.clips = 3: folder x has 2 usable ones"):
            FileClips(result, "folder x", 3, 1.0, 0)

    def test_empty_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"put NAME\.wav and NAME\.txt there"):
            load_folder(tmp_path)

    def test_folders_of_a_mac_and_a_recorder(self, tmp_path: Path) -> None:
        """Sub-folders, suffixes in capitals, companions of files, a byte-order mark; an empty caption is named."""
        (tmp_path / "day 1").mkdir()
        for name in ("day 1/ZOOM0001.WAV", "b.AIFF", "silent.wav"):
            soundfile.write(tmp_path / name, tone(1), 16_000, format="AIFF" if "AIFF" in name else "WAV")
        (tmp_path / "day 1" / "ZOOM0001.TXT").write_text("\ufeffa jig\n", "utf-8")
        (tmp_path / "b.txt").write_text("a reel")
        (tmp_path / "silent.txt").write_text(" \n")
        for hidden in ("._b.AIFF", "._b.txt", ".DS_Store", "day 1/._ZOOM0001.WAV"):
            (tmp_path / hidden).write_bytes(b"\0\5\x16\7")
        result = load_folder(tmp_path)
        assert [(clip.name, clip.caption) for clip in result.clips] == [
            ("b.AIFF", "a reel"),
            ("day 1/ZOOM0001.WAV", "a jig"),
        ]
        assert result.left_out == {"an empty caption": [tmp_path / "silent.wav"]}
        with pytest.raises(DataError, match=r"1 of 3 have an empty caption, first of all silent\.wav"):
            check_clip_folder(tmp_path)

    def test_everything_else_is_counted(self, tmp_path: Path) -> None:
        """Other files, captions alone, captions of any case, links to folders, and one to the folder itself."""
        folder, elsewhere = tmp_path / "clips", tmp_path / "elsewhere"
        for one in (folder, elsewhere):
            one.mkdir()
        for path in (folder / "a.wav", elsewhere / "b.WAVE"):
            soundfile.write(path, tone(1), 16_000, format="WAV")
        (folder / "a.tXt").write_text("a jig")
        (elsewhere / "b.txt").write_text("Märchen", "latin-1")
        (folder / "c.txt").write_text("a reel")
        (folder / "notes.pdf").touch()
        (folder / "linked").symlink_to(elsewhere)
        (folder / "again").symlink_to(folder)
        result = load_recordings(folder)
        assert [(clip.name, clip.caption) for clip in result.clips] == [("a.wav", "a jig"), ("linked/b.WAVE", "")]
        assert {reason: [path.name for path in paths] for reason, paths in result.left_out.items()} == {
            "a caption that is not UTF-8": ["b.txt"],
            "a caption without audio": ["c.txt"],
            "no audio file": ["notes.pdf"],
        }
        assert FileClips(result, "folder", None, 1.0, 0).provenance["left out, no audio file"] == 1
        (empty := folder / "none").mkdir()
        with pytest.raises(DataError, match=r"no audio file in it; allowed are \.wav"):
            load_recordings(empty)

    def test_empty_captions_of_tables_are_none(self, tmp_path: Path) -> None:
        table, audio = write_musiccaps(tmp_path, ["x", "y"], {"x.wav": tone(1), "y.wav": tone(1)})
        (audio / "more").mkdir()
        soundfile.write(audio / "more" / "y.wav", tone(1), 16_000)
        table.write_text(table.read_text().replace("caption 0, with a comma\nand a line", " "))
        result = load_musiccaps(table, audio)
        assert [clip.name for clip in result.clips] == ["y"]
        assert {reason: len(paths) for reason, paths in result.left_out.items()} == {
            "an empty caption": 1,
            "the name of another file": 1,
        }

    def test_captions_in_another_encoding_are_refused_by_name(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", tone(1), 16_000)
        (tmp_path / "a.txt").write_text("Märchen", "latin-1")
        with pytest.raises(DataError, match=r"a\.txt: is not UTF-8 text; save it in that encoding"):
            load_folder(tmp_path)
        table, audio = write_musiccaps(tmp_path, ["x"], {"x.wav": tone(1)})
        table.write_bytes(table.read_bytes().replace(b"caption 0", "Märchen".encode("latin-1")))
        with pytest.raises(DataError, match=r"musiccaps-public\.csv: is not UTF-8 text"):
            load_musiccaps(table, audio)

    def test_a_byte_order_mark_in_tables(self, tmp_path: Path) -> None:
        table, audio = write_musiccaps(tmp_path, ["x"], {"x.WAV": tone(1)})
        table.write_text("\ufeff" + table.read_text("utf-8"), "utf-8")
        assert [clip.name for clip in load_musiccaps(table, audio).clips] == ["x"]


FORMATS = {
    "pcm16.wav": ("WAV", "PCM_16"),
    "pcm24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "extensible.wav": ("WAVEX", "PCM_24"),
    "a.flac": ("FLAC", "PCM_24"),
    "a.ogg": ("OGG", "VORBIS"),
    "a.opus": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "A.AIFF": ("AIFF", "PCM_16"),
}


class TestReading:
    @pytest.mark.parametrize("name", [*FORMATS, "a.m4a", "a.webm"])
    def test_formats(self, tmp_path: Path, name: str) -> None:
        """Two seconds of 1 kHz on the left of two channels, at half the level in mono, and from 1 s on."""
        rate, path = 48_000, tmp_path / name
        stereo = np.stack([tone(2, rate, 1000), np.zeros(2 * rate, np.float32)], 1)
        if name in FORMATS:
            container, subtype = FORMATS[name]
            soundfile.write(path, stereo, rate, format=container, subtype=subtype)
        else:
            encode_with_av(path, stereo, rate, "aac" if name.endswith("m4a") else "libopus")
        clip = read_clip(path, 16_000, 1.0, 0.5)
        assert clip.changed == ("2 channels averaged", "resampled from 48000 Hz")
        assert len(clip.wave) == 8000
        spectrum = np.abs(np.fft.rfft(clip.wave)) / len(clip.wave)
        assert spectrum.argmax() == 500
        assert spectrum[500] == pytest.approx(0.075, rel=0.25 if name == "a.mp3" else 0.02)
        assert audio_seconds(path) == pytest.approx(2.0, abs=0.1)

    def test_a_format_that_needs_an_optional_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        (tmp_path / "a.m4a").write_bytes(b"x" * 100)
        with pytest.raises(DataError, match=r"a\.m4a: \.m4a files are read with PyAV; run `pip install av`"):
            read_clip(tmp_path / "a.m4a", 16_000)

    def test_resampling_and_downmixing_are_reported(self, tmp_path: Path) -> None:
        left, right = tone(1, 44_100, 1000), tone(1, 44_100, 3000)
        soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44_100)
        outputs = read_clip(tmp_path / "a.wav", 16_000)
        assert outputs.changed == ("2 channels averaged", "resampled from 44100 Hz")
        spectrum = np.abs(np.fft.rfft(outputs.wave)) / len(outputs.wave)
        assert len(outputs.wave) == 16_000
        assert spectrum[1000] == pytest.approx(0.075, rel=0.02)
        assert spectrum[3000] == pytest.approx(0.075, rel=0.02)

    def test_resampling_removes_aliases(self) -> None:
        result = resampled(tone(1, 48_000, 10_000), 48_000, 16_000)
        assert np.abs(result[1000:-1000]).max() < 1e-4
        wave = tone(1)
        assert resampled(wave, 16_000, 16_000) is wave

    def test_flac_holds_sixteen_bits(self, tmp_path: Path) -> None:
        (tmp_path / "a.flac").write_bytes(encode_flac(tone(0.5), 16_000))
        np.testing.assert_allclose(read_clip(tmp_path / "a.flac", 16_000).wave, tone(0.5), atol=1 / 32768)

    def test_another_format_than_the_suffix_says(self, tmp_path: Path) -> None:
        """An M4A named .wav; a video without sound is no audio."""
        encode_with_av(tmp_path / "a.m4a", np.stack([tone(1)] * 2, axis=1), 16_000, "aac")
        (tmp_path / "a.m4a").rename(tmp_path / "a.wav")
        assert audio_seconds(tmp_path / "a.wav") == pytest.approx(1, abs=0.1)
        assert len(read_clip(tmp_path / "a.wav", 16_000, 0.5).wave) == pytest.approx(8000, abs=1600)
        with av.open(str(tmp_path / "v.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 16
            for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
                container.mux(packet)
        with pytest.raises(DataError, match="no audio stream"):
            read_clip(tmp_path / "v.mp4", 16_000)

    def test_files_that_are_not_audio(self, tmp_path: Path) -> None:
        (tmp_path / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
        (tmp_path / "broken.m4a").write_bytes(b"\0\0\0\x18ftypM4A ")
        soundfile.write(tmp_path / "short.wav", tone(0.05), 16_000)
        soundfile.write(tmp_path / "nan.wav", np.full(8000, np.nan, np.float32), 16_000, subtype="FLOAT")
        soundfile.write(tmp_path / "one.wav", tone(1), 16_000)
        for name, message in (
            ("broken", "cannot be read as audio"),
            ("none", "does not exist"),
            ("broken.m4a", "cannot be read as audio"),
            ("short", "0.05 s of audio; 0.1 s or more"),
            ("nan", "not finite"),
        ):
            with pytest.raises(DataError, match=message):
                read_clip(tmp_path / (name if "." in name else f"{name}.wav"), 16_000)
        with pytest.raises(DataError, match="lasts 1 s; a clip from 2 s on"):
            read_clip(tmp_path / "one.wav", 16_000, 2.0)
