"""Tunes of music21's corpus: lists of notes, split by tune into train, validation and test.

Three collections of single-line tunes are used, all printed before 1890 and long out of copyright: Ryan's Mammoth
Collection (1883), O'Neill's Irish Music (transcriptions of older tunes) and Aird's Airs (1782-1803). Parsing takes
minutes, so the result is cached in one JSON file. Variants of one tune share a split, also under different titles.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tinymusician.data.splits import Split
from tinymusician.house_band.dedup import families

TUNES = "tunes-by-family.json"
"""The file of the parsed tunes."""
COLLECTIONS = {"ryan": "ryansMammoth", "oneill": "oneills1850", "aird": "airdsAirs"}
KINDS = ("reel", "jig", "hornpipe", "strathspey", "waltz", "polka", "clog", "march")
_LONGEST_QUARTERS = 96.0
_NOT_THE_TITLE = {"the", "a", "an", "setting", "st", "nd", "rd", "th", "s", *KINDS}


@dataclass(frozen=True)
class Tune:
    """One melody. `notes` are (onset in quarters, length in quarters, MIDI pitch), ordered by onset."""

    title: str
    collection: str
    kind: str
    tonic: int
    mode: Literal["major", "minor"]
    meter: str
    notes: tuple[tuple[float, float, int], ...]
    split: Split = "train"


def plain_title(title: str) -> str:
    """The title without numbering, articles, dances, case and punctuation: equal for settings of one tune."""
    words = re.sub(r"[^a-z ]", " ", title.lower()).split()
    return " ".join(word for word in words if word not in _NOT_THE_TITLE)


def family_names(tunes: Sequence[Tune]) -> list[str]:
    """For each tune the plain title of its family's first tune: equal for all settings of one tune.

    Families share a split, so those of one split's tunes are those of all.
    """
    titles = [plain_title(tune.title) for tune in tunes]
    return [titles[first] for first in families(titles, [[pitch for _, _, pitch in tune.notes] for tune in tunes])]


def assign_splits(tunes: Sequence[Tune]) -> list[Tune]:
    """The tunes with their splits, by a hash of their families' names."""
    return [replace(tune, split=_split_of(name)) for tune, name in zip(tunes, family_names(tunes), strict=True)]


def _split_of(title: str) -> Split:
    bucket = zlib.crc32(title.encode()) % 20
    return "validation" if bucket == 0 else "test" if bucket == 1 else "train"


def load_tunes(cache: Path) -> list[Tune]:
    """Read the parsed tunes from `cache`; music21's corpus is parsed first if the file is missing."""
    if not cache.exists():
        tunes = [asdict(tune) for tune in assign_splits(_parse_corpus())]
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_name(f"{cache.name}.{os.getpid()}.part")
        draft.write_text(json.dumps(tunes))
        os.replace(draft, cache)
    return [_from_json(entry) for entry in json.loads(cache.read_text())]


def _parse_corpus() -> list[Tune]:
    """Parse every usable tune of the three collections with music21, on all cores (about four minutes on one)."""
    from joblib import Parallel, delayed

    parsed = Parallel(n_jobs=-1)(delayed(tunes_in)(*arguments) for arguments in corpus_files())
    return [tune for tunes in parsed for tune in tunes]


def corpus_files() -> list[tuple[str, Path]]:
    """The files of music21's corpus that are used, in order, each with its collection."""
    import music21

    root = Path(music21.__file__).parent / "corpus"
    return [(kind, path) for kind, folder in COLLECTIONS.items() for path in sorted((root / folder).glob("*.abc"))]


def tunes_in(collection: str, path: Path) -> list[Tune]:
    """The usable tunes of one file."""
    warnings.filterwarnings("ignore", module="music21")
    tunes = (_tune_of(score, collection, path.stem) for score in _scores_in(path))
    return [tune for tune in tunes if tune is not None]


def _scores_in(path: Path) -> list[Any]:
    from music21 import converter
    from music21.exceptions21 import Music21Exception

    try:
        parsed = converter.parse(path, forceSource=True)  # no pickles: processes would write over each other's
    except (Music21Exception, ValueError, IndexError):  # a few ABC files of the corpus are malformed
        return []
    return list(parsed.scores) if hasattr(parsed, "scores") else [parsed]


def _tune_of(score: Any, collection: str, stem: str) -> Tune | None:
    from music21 import key, meter

    flat = score.flatten()
    notes = tuple(
        (float(n.offset), float(n.quarterLength), int(max(p.midi for p in n.pitches)))
        for n in flat.notes
        if n.pitches and n.quarterLength > 0 and n.offset <= _LONGEST_QUARTERS
    )
    if len(notes) < 16:
        return None
    title = score.metadata.title if score.metadata and score.metadata.title else stem
    signature = flat.getElementsByClass(key.Key).first() or score.analyze("key")
    time = flat.getElementsByClass(meter.TimeSignature).first()
    minor = signature.mode in {"minor", "dorian", "aeolian", "phrygian"}
    return Tune(
        title=title,
        collection=collection,
        kind=_kind_of(f"{title} {stem}", time.ratioString if time is not None else ""),
        tonic=int(signature.tonic.midi) % 12,
        mode="minor" if minor else "major",
        meter=time.ratioString if time is not None else "?",
        notes=notes,
    )


def _kind_of(text: str, ratio: str) -> str:
    """The dance of a tune, from its title, or else from its meter."""
    for kind in KINDS:
        if kind in text.lower():
            return kind
    return {"6/8": "jig", "9/8": "jig", "12/8": "jig", "3/4": "waltz", "3/8": "waltz"}.get(ratio, "tune")


def _from_json(entry: dict[str, Any]) -> Tune:
    notes = tuple((float(on), float(length), int(pitch)) for on, length, pitch in entry.pop("notes"))
    return Tune(notes=notes, **entry)
