"""What a sentence is to a network: hashed terms, or what a model of sentences makes of it (see `text`)."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from metarun.data.reading import reading
from metarun.types import InputError

VERSION = 1
"""of the terms and of their hashes: raise it when either changes"""
RUNS = (3, 4, 5)
"""characters of a word that are a term together"""
WORD = re.compile(r"\w+|[^\w\s]+")


def shown(value: Any) -> str:
    """What is in a file, in one short line."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 40 else ascii(value)[:60]


def digest(texts: Iterable[str]) -> str:
    """Tells texts apart, and where each ends."""
    made = hashlib.sha256()
    for text in texts:
        # json may hold half of a character, which is fine here.
        data = text.encode(errors="surrogatepass")
        made.update(len(data).to_bytes(8, "little") + data)
    return made.hexdigest()


# Hashed terms


def terms_of(sentences: Iterable[str]) -> dict[str, Any]:
    """`hashes` (terms,) int64 of all the terms there are; `ids` and `counts` (occurrences,) int32: which term is in a
    sentence, and how often; `ends` (sentences,) int64: where a sentence's occurrences end."""
    numbers: dict[str, int] = {}
    of_word: dict[str, list[int]] = {}  # words come again and again, and most terms are within one
    ids, counts, ends = array("i"), array("i"), array("q")
    for sentence in sentences:
        words = WORD.findall(normalize("NFKC", sentence).casefold())
        mine = [numbers.setdefault(f"p{a} {b}", len(numbers)) for a, b in pairwise(words)]
        for word in words:
            if word not in of_word:
                of_word[word] = [numbers.setdefault(term, len(numbers)) for term in within(word)]
            mine += of_word[word]
        times = Counter(mine)
        ids.extend(times)
        counts.extend(times.values())
        ends.append(len(ids))
    hashes = array("q", map(stable_hash, numbers))
    arrays = {"hashes": hashes, "ids": ids, "counts": counts, "ends": ends}
    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def within(word: str) -> Iterator[str]:
    """The terms of a word; their first letter keeps a word, a run and a pair that look alike apart."""
    marked = f" {word} "
    yield f"w{word}"
    for n in RUNS:
        for start in range(len(marked) - n + 1):
            yield f"c{marked[start : start + n]}"


def stable_hash(term: str) -> int:
    """64 bits with a sign, the same in every process. Not a CRC: terms that differ alike would collide alike."""
    made = hashlib.blake2b(term.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(made, "little", signed=True)


def hashed(terms: dict[str, Any], rows: Tensor, buckets: int, train: Tensor | None) -> Tensor:
    """The sentences `rows` as (rows, buckets) float32 of length 1; terms weigh by their rarity in `train`, if given."""
    hashes, ids, ends = terms["hashes"], terms["ids"].long(), terms["ends"]
    sentence = torch.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)))  # of each occurrence
    weights = torch.where(hashes < 0, -1.0, 1.0)
    if train is not None:
        seen = torch.zeros(len(ends), dtype=torch.bool).index_fill(0, train, True)[sentence]
        within_n = torch.bincount(ids[seen], minlength=len(hashes))
        weights = weights * (1 + ((1 + len(train)) / (1 + within_n)).log())
    row = torch.full((len(ends),), -1).index_put((rows,), torch.arange(len(rows)))[sentence]
    own = row >= 0
    ids = ids[own]
    values = weights[ids] * (1 + terms["counts"][own].log())
    places = row[own] * buckets + (hashes & (2**63 - 1)).remainder(buckets)[ids]
    items = torch.zeros(len(rows) * buckets).index_add_(0, places, values).view(-1, buckets)
    return items / items.norm(dim=1, keepdim=True).clamp_min(1e-12)


# Embeddings


def model_folder(folder: Path) -> Path:
    """Raises `InputError` unless a model can be loaded from there, with no code but the package's own."""
    if not folder.is_dir():
        raise InputError(
            f"dataset.encoder: {folder} is not there; give 'hashed', or the folder of a sentence-transformers model, "
            "which metarun does not fetch"
        )
    path = folder / "modules.json"
    if not path.is_file():
        raise InputError(f"dataset.encoder: {folder} has no modules.json, so it is no sentence-transformers model")
    with reading(path):
        modules = json.loads(path.read_text(encoding="utf-8"))
    modules = modules if isinstance(modules, list) and modules else [None]
    types = [module.get("type") if isinstance(module, dict) else None for module in modules]
    if foreign := [name for name in types if not str(name).startswith("sentence_transformers.")]:
        raise InputError(f"{path}: a module is {shown(foreign[0])}; only modules of sentence_transformers are loaded")
    return folder


def stamp(folder: Path) -> str:
    """Changes when a file of the model does: names, sizes and times, which take little to ask for."""
    with reading(folder):
        files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return digest(f"{path} {status.st_size} {status.st_mtime_ns}" for path, status in files)


def embedded(sentences: Sequence[str], folder: Path) -> dict[str, Any]:
    """`items` (sentences, numbers) float32 of length 1"""
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"dataset.encoder: sentence-transformers cannot be imported ({error}): pip install 'metarun[sentences]'"
        ) from error
    print(f"embedding {len(sentences):,} sentences with {folder}, once", file=sys.stderr)
    try:
        model = SentenceTransformer(str(folder), local_files_only=True)
    except Exception as error:
        # A broken model may raise nearly anything.
        raise InputError(
            f"dataset.encoder: {folder} does not load ({type(error).__name__}: {shown(str(error))})"
        ) from error
    made = model.encode(list(sentences), convert_to_numpy=True, normalize_embeddings=True)
    return {"items": torch.from_numpy(np.asarray(made, dtype=np.float32))}
