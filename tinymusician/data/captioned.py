"""Captioned clips in files, in the formats of MusicCaps and MusicBench, or in a plain folder.

This package contains neither their tables nor their audio; both are read from the user's paths:

    MusicCaps   musiccaps-public.csv (google/MusicCaps): ytid, start_s, end_s, …, caption, …, is_balanced_subset,
                is_audioset_eval; audio as YTID.wav (a cut clip or the whole video), YTID_START_END.wav, or
                [YTID]-[START-END].wav, or any other suffix of an audio file
    MusicBench  MusicBench_test_A.json and others (amaai-lab/MusicBench): JSON, an object a line or a list, with
                `location` below the audio folder and `main_caption`
    a folder    clips, also in sub-folders, each with its caption in a .txt of the same name

Suffixes count in any case, a byte-order mark is no text, links to folders are followed, and hidden files are ignored,
such as the `._NAME` that a Mac writes beside files on other disks. What is left out is listed by reason.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinymusician.errors import DataError
from tinymusician.json_types import JsonObject
from tinymusician.runtime.audio_reader import SUFFIXES, check_readable

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
    """The clips, and by reason the paths of files that are no clip, or of captions and audio that are missing."""

    clips: list[CaptionedClip]
    left_out: dict[str, list[Path]]


def load_musiccaps(table: Path, audio: Path, subset: Subset = "all") -> CaptionedSet:
    """The clips of MusicCaps' table whose audio is in a folder.

    Raises:
        DataError: there is no such table or folder, the table has other columns, or no clip has audio.
    """
    rows = _csv(table, ("ytid", "start_s", "end_s", "caption", *_FLAGS.values()))
    by_stem, left_out = dict[str, Path](), dict[str, list[Path]]()
    for path in audio_files(audio):
        if by_stem.setdefault(path.stem, path) is not path:
            left_out.setdefault("the name of another file", []).append(path)
    chosen = rows if subset == "all" else [row for row in rows if row[_FLAGS[subset]].strip().lower() == "true"]
    clips = []
    for row in chosen:
        try:
            start, end = float(row["start_s"]), float(row["end_s"])
        except ValueError as error:
            raise DataError(f"{table}: {row['ytid']}: start_s and end_s must be numbers") from error
        clip_id = row["ytid"]
        cut = (f"{clip_id}_{row['start_s']}_{row['end_s']}", f"[{clip_id}]-[{row['start_s']}-{row['end_s']}]")
        file, caption = next((by_stem[stem] for stem in cut if stem in by_stem), None), row["caption"].strip()
        whole = by_stem.get(clip_id)
        if file is None and whole is None:
            left_out.setdefault("no audio", []).append(audio / f"{clip_id}.wav")
        elif not caption:
            left_out.setdefault("an empty caption", []).append(table)
        elif file is not None:
            clips.append(CaptionedClip(clip_id, caption, file))
        elif whole is not None:
            clips.append(CaptionedClip(clip_id, caption, whole, start, end))
    return _non_empty(clips, left_out, table)


def load_musicbench(table: Path, audio: Path) -> CaptionedSet:
    """The clips of one of MusicBench's tables whose audio is in a folder, as its archive unpacks.

    Raises:
        DataError: there is no such table or folder, the table lacks `location` or `main_caption`, or no clip has audio.
    """
    _folder(audio)
    clips, left_out = [], dict[str, list[Path]]()
    for number, row in enumerate(_json_rows(table), 1):
        location, caption = row.get("location"), row.get("main_caption")
        if not isinstance(location, str) or not isinstance(caption, str):
            raise DataError(f"{table}: row {number}: has no `location` and `main_caption`; is this MusicBench's table?")
        path = audio / location
        if not path.resolve().is_relative_to(audio.resolve()):
            raise DataError(f"{table}: row {number}: location {location!r} leads out of {audio}")
        if not path.is_file() or not caption.strip():
            left_out.setdefault("an empty caption" if path.is_file() else "no audio", []).append(path)
        else:
            clips.append(CaptionedClip(location, caption.strip(), path))
    return _non_empty(clips, left_out, table)


def audio_files(folder: Path) -> list[Path]:
    """The audio files in a folder and its sub-folders, in order, without hidden ones.

    Raises:
        DataError: there is no such folder.
    """
    return [path for path in _visible_files(folder) if path.suffix.lower() in SUFFIXES and _has_text_name(path)]


@dataclass(frozen=True)
class _Folder:
    """A folder's audio files with their captions, None for none, and by reason what is left out of it."""

    captions: dict[Path, str | None]
    left_out: dict[str, list[Path]]


def _read_folder(folder: Path, other_encodings: bool = False) -> _Folder:
    """Pair audio files and captions of the same name; with `other_encodings`, a caption that is not UTF-8 is left out.

    Raises:
        DataError: there is no such folder, or a caption is not UTF-8.
    """
    everything, left_out = _visible_files(folder), dict[str, list[Path]]()
    files = [path for path in everything if _has_text_name(path)]
    if len(files) < len(everything):
        left_out["a name that is not UTF-8"] = [path for path in everything if not _has_text_name(path)]
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    audio = [path for path in files if path.suffix.lower() in SUFFIXES]
    captions: dict[Path, str | None] = {}
    for path in audio:
        text = texts.get(path.with_suffix(""))
        try:
            captions[path] = None if text is None else _read_text(text).strip()
        except DataError:
            if not other_encodings or text is None:
                raise
            captions[path] = None
            left_out.setdefault("a caption that is not UTF-8", []).append(text)
    used = {path.with_suffix("") for path in audio}
    for path in files:
        if path.suffix.lower() == ".txt" and path.with_suffix("") not in used:
            left_out.setdefault("a caption without audio", []).append(path)
        elif path.suffix.lower() not in (*SUFFIXES, ".txt"):
            left_out.setdefault("no audio file", []).append(path)
    return _Folder(captions, left_out)


def load_folder(audio: Path) -> CaptionedSet:
    """All clips of a folder that have a caption beside them.

    Raises:
        DataError: there is no such folder, no clip with a caption in it, or a caption is not UTF-8.
    """
    folder, clips = _read_folder(audio), []
    left_out = {reason: list(paths) for reason, paths in folder.left_out.items()}
    for path, caption in folder.captions.items():
        if caption:
            clips.append(CaptionedClip(path.relative_to(audio).as_posix(), caption, path))
        else:
            reason = "no caption" if caption is None else "an empty caption"
            left_out.setdefault(reason, []).append(path)
    if not clips:
        seen = "".join(f"; {len(paths)} have {reason}" for reason, paths in left_out.items())
        raise DataError(f"{audio}: no clip with a caption; put NAME.wav and NAME.txt there, one pair a clip{seen}")
    return CaptionedSet(clips, left_out)


def load_recordings(audio: Path) -> CaptionedSet:
    """All clips of a folder; their captions are empty where there is no readable one beside them.

    Raises:
        DataError: there is no such folder, or no audio in it.
    """
    folder = _read_folder(audio, other_encodings=True)
    clips = [
        CaptionedClip(path.relative_to(audio).as_posix(), caption or "", path)
        for path, caption in folder.captions.items()
    ]
    if not clips:
        raise DataError(f"{audio}: no audio file in it; allowed are {', '.join(SUFFIXES)}")
    return CaptionedSet(clips, folder.left_out)


def load_training_clips(folder: Path) -> list[CaptionedClip]:
    """All clips of a folder, each with its caption.

    Raises:
        DataError: there are none, or one has no caption.
    """
    captioned = load_folder(folder)
    without = {reason: captioned.left_out.get(reason, []) for reason in ("no caption", "an empty caption")}
    for reason, paths in without.items():
        total = len(captioned.clips) + sum(map(len, without.values()))
        if not paths:
            continue
        raise DataError(f"clips {folder}: {len(paths)} of {total} have {reason}, first of all {paths[0].name}")
    return captioned.clips


def check_clip_folder(folder: Path) -> None:
    """Check the clips of a folder for training: each can be read, and has a caption beside it.

    Raises:
        DataError: there is none, or one cannot be read or has no caption.
    """
    for clip in load_training_clips(folder):
        check_readable(clip.path)


def _visible_files(folder: Path) -> list[Path]:
    """The files in a folder and its sub-folders, links followed, in order, without hidden ones."""
    _folder(folder)
    files, seen = [], set[str]()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it in that encoding") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _csv(table: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(_absent(table, error)) from error
    lacking = [column for column in needed if not rows or rows[0].get(column) is None]
    if lacking:
        raise DataError(f"{table}: has no column {', '.join(lacking)}; is this MusicCaps' table?")
    return rows


def _json_rows(table: Path) -> list[JsonObject]:
    try:
        text = table.read_text("utf-8-sig")
        is_list = text.lstrip().startswith("[")
        rows = json.loads(text) if is_list else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(_absent(table, error)) from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{table}: holds no objects; is this MusicBench's table?")
    return list(rows)


def _absent(table: Path, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{table}: is not UTF-8 text; save it in that encoding"
    reason = getattr(error, "strerror", None) or "not such a table"
    return f"{table}: {reason}; download the table from its dataset's page, and give its path"


def _has_text_name(path: Path) -> bool:
    """Whether a path can be written as UTF-8, as reports and errors do."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _folder(audio: Path) -> None:
    if audio.is_file():
        raise DataError(f"{audio}: is a file; a folder is needed")
    if not audio.is_dir():
        raise DataError(f"{audio}: no such folder; the clips' audio belongs there")


def _non_empty(clips: list[CaptionedClip], left_out: dict[str, list[Path]], table: Path) -> CaptionedSet:
    if not clips:
        missing = left_out.get("no audio", [])
        where = f", first of all {missing[0]}" if missing else ""
        raise DataError(f"{table}: none of its {len(missing)} clips has its audio here{where}")
    return CaptionedSet(clips, left_out)
