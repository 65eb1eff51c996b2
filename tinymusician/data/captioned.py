"""Captioned clips in files, in the formats of MusicCaps and MusicBench, or in a plain folder.

This package contains neither their tables nor their audio; both are read from the user's paths:

    MusicCaps   musiccaps-public.csv (google/MusicCaps): ytid, start_s, end_s, …, caption, …, is_balanced_subset,
                is_audioset_eval; audio as YTID.wav (a cut clip or the whole video), YTID_START_END.wav, or
                [YTID]-[START-END].wav; .flac, .ogg and .mp3 as well
    MusicBench  MusicBench_test_A.json and others (amaai-lab/MusicBench): JSON, an object a line or a list, with
                `location` below the audio folder and `main_caption`
    a folder    clips, each with its caption in a .txt of the same name
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinymusician.errors import DataError
from tinymusician.json_types import JsonObject

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
Subset = Literal["all", "balanced", "eval"]
_FLAGS: dict[Subset, str] = {"balanced": "is_balanced_subset", "eval": "is_audioset_eval"}


@dataclass(frozen=True)
class CaptionedClip:
    """A clip in a file. If the file is a whole video, the clip is from `start` to `end` seconds in it."""

    name: str
    caption: str
    path: Path
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class CaptionedSet:
    """The clips that have audio, and for the others the paths where it was expected."""

    clips: list[CaptionedClip]
    missing: list[Path]


def load_musiccaps(table: Path, audio: Path, subset: Subset = "all") -> CaptionedSet:
    """The clips of MusicCaps' table whose audio is in a folder.

    Raises:
        DataError: there is no such table or folder, the table has other columns, or no clip has audio.
    """
    rows = _csv(table, ("ytid", "start_s", "end_s", "caption", *_FLAGS.values()))
    _folder(audio)
    chosen = rows if subset == "all" else [row for row in rows if row[_FLAGS[subset]].strip().lower() == "true"]
    clips, missing = [], []
    for row in chosen:
        try:
            start, end = float(row["start_s"]), float(row["end_s"])
        except ValueError as error:
            raise DataError(f"{table}: {row['ytid']}: start_s and end_s must be numbers") from error
        clip_id = row["ytid"]
        cut = (f"{clip_id}_{row['start_s']}_{row['end_s']}", f"[{clip_id}]-[{row['start_s']}-{row['end_s']}]")
        path = _first_existing(audio, cut)
        whole = _first_existing(audio, (clip_id,))
        if path is not None:
            clips.append(CaptionedClip(clip_id, row["caption"], path))
        elif whole is not None:
            clips.append(CaptionedClip(clip_id, row["caption"], whole, start, end))
        else:
            missing.append(audio / f"{clip_id}.wav")
    return _non_empty(CaptionedSet(clips, missing), table)


def load_musicbench(table: Path, audio: Path) -> CaptionedSet:
    """The clips of one of MusicBench's tables whose audio is in a folder, as its archive unpacks.

    Raises:
        DataError: there is no such table or folder, the table lacks `location` or `main_caption`, or no clip has audio.
    """
    _folder(audio)
    clips, missing = [], []
    for number, row in enumerate(_json_rows(table), 1):
        location, caption = row.get("location"), row.get("main_caption")
        if not isinstance(location, str) or not isinstance(caption, str):
            raise DataError(f"{table}: row {number}: has no `location` and `main_caption`; is this MusicBench's table?")
        path = audio / location
        if not path.resolve().is_relative_to(audio.resolve()):
            raise DataError(f"{table}: row {number}: location {location!r} leads out of {audio}")
        clips.append(CaptionedClip(location, caption, path)) if path.is_file() else missing.append(path)
    return _non_empty(CaptionedSet(clips, missing), table)


def load_folder(audio: Path) -> CaptionedSet:
    """All clips of a folder that have a caption beside them.

    Raises:
        DataError: there is no such folder, or no clip with a caption in it.
    """
    _folder(audio)
    files = sorted(path for path in audio.iterdir() if path.suffix.lower() in SUFFIXES)
    captioned = [path for path in files if path.with_suffix(".txt").is_file()]
    clips = [CaptionedClip(path.name, path.with_suffix(".txt").read_text().strip(), path) for path in captioned]
    if not clips:
        raise DataError(f"{audio}: no clip with a caption; put NAME.wav and NAME.txt there, one pair a clip")
    return CaptionedSet(clips, [path.with_suffix(".txt") for path in files if path not in captioned])


def check_clip_folder(folder: Path) -> None:
    """Check a folder of WAV files for training by their headers: each can be read, and has a caption beside it.

    Raises:
        DataError: there is none, or one cannot be read or has no caption.
    """
    import soundfile

    paths = sorted(folder.glob("*.wav"))
    if not paths:
        raise DataError(f"clips {folder}: no .wav files there; each needs a .txt with its caption beside it")
    if without := [path.with_suffix(".txt").name for path in paths if not path.with_suffix(".txt").is_file()]:
        raise DataError(f"clips {folder}: {len(without)} of {len(paths)} have no caption; {without[0]} is missing")
    for path in paths:
        try:
            soundfile.info(path)
        except (OSError, soundfile.LibsndfileError) as error:
            raise DataError(f"clip {path}: cannot be read ({' '.join(str(error).split())})") from None


def _csv(table: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(_absent(table, error)) from error
    lacking = [column for column in needed if not rows or rows[0].get(column) is None]
    if lacking:
        raise DataError(f"{table}: has no column {', '.join(lacking)}; is this MusicCaps' table?")
    return rows


def _json_rows(table: Path) -> list[JsonObject]:
    try:
        text = table.read_text("utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(_absent(table, error)) from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{table}: holds no objects; is this MusicBench's table?")
    return list(rows)


def _absent(table: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or "not such a table"
    return f"{table}: {reason}; download the table from its dataset's page, and give its path"


def _folder(audio: Path) -> None:
    if not audio.is_dir():
        raise DataError(f"{audio}: no such folder; the clips' audio belongs there")


def _first_existing(folder: Path, stems: Sequence[str]) -> Path | None:
    candidates = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    return next((path for path in candidates if path.is_file()), None)


def _non_empty(captioned: CaptionedSet, table: Path) -> CaptionedSet:
    if not captioned.clips:
        where = f", first of all {captioned.missing[0]}" if captioned.missing else ""
        raise DataError(f"{table}: none of its {len(captioned.missing)} clips has its audio here{where}")
    return captioned
