"""Where a tokenize stage leaves what belongs to shards: the TAG/SPLIT folders, the vocabulary, the tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from foundation.errors import DataError, did_you_mean
from foundation.stream.storage import Storage, open_storage
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.layout import Layout, Mode
from foundation.tokens.tokenizer import Tokenizer
from foundation.tokens.vocabulary import Vocabulary


def dataset_folders(words: Sequence[str], split: str | None = None) -> list[str]:
    """The dataset folders that words name: a folder or URL with a manifest, or all TAG/SPLIT below a stage's folder.

    Raises DataError where there is nothing.
    """
    found: dict[str, None] = {}
    for word in words:
        path = Path(word)
        if "://" in word or word.startswith("pipe:") or (path / "manifest.json").is_file():
            found[word] = None
            continue
        below = [p.parent for pattern in ("*", "*/*") for p in sorted(path.glob(f"{pattern}/manifest.json"))]
        chosen = [folder for folder in below if split in (None, folder.name)]
        if not chosen:
            raise DataError(_nothing_there(path, split, [folder.name for folder in below]))
        found |= dict.fromkeys(str(folder) for folder in chosen)
    return list(found)


def _nothing_there(path: Path, split: str | None, splits: Sequence[str]) -> str:
    if not path.is_dir():
        return f"{path}: no such folder"
    if splits:
        return f"{path}: has no split '{split}'{did_you_mean(str(split), splits)}"
    return f"{path}: no manifest.json here or two folders below: not a folder of shards, or an unfinished one"


def layout_above(folder: str, vocabulary: Path | None = None, streams: Mode | None = None) -> Layout | None:
    """The layout by the vocabulary.json in the folder or one of the two above it, where a tokenize stage leaves it.

    vocabulary: a file to take instead; streams: how codes stand in a sequence, else as the stage says
    """
    if vocabulary is not None:
        return Layout(Vocabulary.load(vocabulary), streams or "delayed")
    if folder.startswith("pipe:"):
        return None
    place = folder if "://" in folder else str(Path(folder).absolute())
    for _ in range(3):
        storage = open_storage(place)
        if _is_there(storage, "vocabulary.json"):
            known = Vocabulary.from_json(json.loads(storage.read_all("vocabulary.json")))
            return Layout(known, streams or _mode_of_stage(storage))
        place = place.rstrip("/").rpartition("/")[0]
    return None


def _mode_of_stage(storage: Storage) -> Mode:
    """How a tokenize stage says that codes stand in a sequence."""
    if not _is_there(storage, "artifact.json"):
        return "delayed"
    said = json.loads(storage.read_all("artifact.json")).get("summary", {}).get("streams")
    return "interleaved" if said == "interleaved" else "delayed"


def _is_there(storage: Storage, name: str) -> bool:
    try:
        return storage.exists(name)
    except DataError:
        # an object store may refuse to say what is not there
        return False


def tokenizer_beside(folder: str) -> Tokenizer | None:
    """The tokenizer that lies beside the splits of a dataset on this machine."""
    home = Path(folder).absolute().parent / "tokenizer"
    return load_tokenizer(home) if "://" not in folder and home.is_dir() else None
