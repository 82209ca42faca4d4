"""Sentences from small files of every kind: what they become, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarun.data import text
from metarun.data.bank import ClassBank
from metarun.data.sentences import stable_hash
from metarun.data.text import Banking77, Clinc150, Sentences, Text
from metarun.types import SPLITS, InputError, Place

SENTENCES = {
    "lost": ["I lost my card", "my card is gone, where is my card?", "somebody took my card"],
    "rate": ["what is the exchange rate", "how many dollars for a euro?"],
    "pin": ["I forgot my PIN", "my pin is blocked", "change the pin"],
    "hello": ["hi", "good morning to you"],
    "weather": ["will it rain?", "is it cold out there"],
    "naïve": ["Straße, 北京 and ½", "???", "don't"],
}  # fmt: skip
SPLIT = {"train": ["lost", "rate", "pin"], "val": ["hello"], "test": ["weather", "naïve"]}
ROWS = [(sentence, label) for label, sentences in SENTENCES.items() for sentence in sentences]
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and the published sets are as small as SENTENCES."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(text, "published", lambda name: SPLIT)
    monkeypatch.setattr(text, "CLINC150", len(ROWS))
    monkeypatch.setattr(text, "BANKING77", len(ROWS))


def write_csv(path: Path, rows: list[tuple[str, ...]] = ROWS, header: str = "text,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def write_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps({"label": label, "text": sentence}) + "\n" for sentence, label in ROWS))
    return path


def write_lists(path: Path) -> Path:
    path.write_text(json.dumps(SPLIT))
    return path


def write_clinc(root: Path) -> Path:
    path = root / "text" / "clinc150" / "data_full.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {"oos_val": [["who am I", "oos"]], "val": ROWS[4:9], "train": ROWS[:4], "test": ROWS[9:], "oos_test": []}
    path.write_text(json.dumps(parts))
    return path


def write_banking(root: Path) -> list[Path]:
    folder = root / "text" / "banking77"
    return [
        write_csv(folder / name, rows, "text,category")
        for name, rows in (("train.csv", ROWS[:8]), ("test.csv", ROWS[8:]))
    ]


def load(path: Path, split: str = "train", **settings: Any) -> ClassBank:
    """Of a table, split by the list beside it unless the settings say otherwise."""
    if not settings.keys() & {"lists", "split_column", "ratios"}:
        write_lists(path.parent / "lists.json")
        settings["lists"] = "lists.json"
    return Text(path=str(path), **settings).load(split, Place(path.parent))


def refusal(make: Callable[[], Any]) -> str:
    """What an `InputError` says; one line."""
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def equal(one: ClassBank, other: ClassBank) -> bool:
    return one.names == other.names and torch.equal(one.items, other.items) and torch.equal(one.offsets, other.offsets)


# What is in a bank


def test_csv_jsonl_clinc_and_banking_of_the_same_sentences_are_equal_banks(tmp_path: Path) -> None:
    write_clinc(tmp_path)
    write_banking(tmp_path)
    for split in SPLITS:
        bank = load(write_csv(tmp_path / "own.csv"), split)
        assert bank.names == tuple(sorted(SPLIT[split]))
        assert bank.sizes.tolist() == [len(SENTENCES[label]) for label in bank.names]
        for other in (
            load(write_jsonl(tmp_path / "own.jsonl"), split),
            Clinc150().load(split, Place(tmp_path)),
            Banking77().load(split, Place(tmp_path)),
        ):
            assert equal(bank, other)
            assert bank.digest() == other.digest()


def slow(sentences: list[str], train: list[str], buckets: int, idf: bool) -> torch.Tensor:
    """The same numbers, one term after another."""

    def terms(sentence: str) -> Counter[str]:
        words = re.findall(r"\w+|[^\w\s]+", sentence.lower().replace("ß", "ss").replace("½", "1⁄2"))
        found = [f"w{word}" for word in words]
        found += [f"p{one} {other}" for one, other in pairwise(words)]
        for word in words:
            for n in (3, 4, 5):
                found += [f"c{run}" for run in (f" {word} "[i : i + n] for i in range(len(word) + 2)) if len(run) == n]
        return Counter(found)

    items, in_train = torch.zeros(len(sentences), buckets), [terms(sentence) for sentence in train]
    for item, sentence in zip(items, sentences):
        for term, times in terms(sentence).items():
            value, number = 1 + math.log(times), stable_hash(term)
            if idf:
                value *= 1 + math.log((1 + len(train)) / (1 + sum(term in other for other in in_train)))
            item[(number % 2**63) % buckets] += value if number >= 0 else -value
    return items / items.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("idf", [True, False])
@pytest.mark.parametrize("split", SPLITS)
def test_items_are_what_the_slow_way_gives(tmp_path: Path, split: str, idf: bool) -> None:
    bank = load(write_csv(tmp_path / "a.csv"), split, buckets=64, idf=idf)
    own, train = ([s for label in sorted(SPLIT[name]) for s in SENTENCES[label]] for name in (split, "train"))
    torch.testing.assert_close(bank.items, slow(own, train, 64, idf), atol=1e-6, rtol=0)
    torch.testing.assert_close(bank.items.norm(dim=1), torch.ones(len(own)))


def test_hashes_are_the_same_in_every_process() -> None:
    assert [stable_hash(term) for term in ("wcard", "c\ud800 北")] == [5562045488531629244, 8142802378323939602]


def test_sentences_that_share_words_or_parts_of_them_are_near(tmp_path: Path) -> None:
    rows = [("unlock my account", "a"), ("accounts unlocked?", "b"), ("good morning", "c")]
    items = load(write_csv(tmp_path / "a.csv", rows), "train", split_column=None, ratios=[0.4, 0.3, 0.3]).items
    every = {
        name: Text(path="a.csv", idf=False).load(split, Place(tmp_path)).items[0]
        for split in SPLITS
        for name in Text(path="a.csv").load(split, Place(tmp_path)).names
    }
    assert items.shape == (1, 2048)
    assert every["a"] @ every["b"] > 0.3 > 0.15 > (every["a"] @ every["c"]).abs()


def test_rarity_is_that_among_training_sentences_alone(tmp_path: Path) -> None:
    before = load(write_csv(tmp_path / "a.csv"), "train")
    others = [(sentence, label) for sentence, label in ROWS if label in SPLIT["train"]]
    others += [("my card my pin", label) for label in ("hello", "weather", "naïve")]
    after = load(write_csv(tmp_path / "b.csv", others), "train")
    assert equal(before, after)
    assert before.digest() == after.digest()
    assert not torch.equal(before.items, load(tmp_path / "a.csv", "train", idf=False).items)


def test_a_sentence_that_a_class_has_twice_counts_once(tmp_path: Path) -> None:
    rows = [*ROWS, ("  I lost my card ", "lost"), ("I lost my card", "rate")]
    bank = load(write_csv(tmp_path / "a.csv", rows))
    assert dict(zip(bank.names, bank.sizes.tolist())) == {"lost": 3, "pin": 3, "rate": 3}


def test_other_columns_and_labels_that_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"q": s, "id": i % 3, "by": None}) + "\n" for i, (s, _) in enumerate(ROWS)))
    names = [load(path, s, text_column="q", label_column="id", ratios=[0.4, 0.3, 0.3]).names for s in SPLITS]
    assert sorted(sum(names, ())) == ["0", "1", "2"]


def test_episodes_of_sentences(tmp_path: Path) -> None:
    bank = load(write_csv(tmp_path / "a.csv"), buckets=32)
    episodes = bank.episodes(way=3, shot=1, query=1, seed=0, split="train")(0, 4)
    assert episodes.support_x.shape == episodes.query_x.shape == (4, 3, 32)
    assert not (episodes.support_x == episodes.query_x).all(2).any()


# Splits


def test_splits_by_column_by_list_and_by_chance(tmp_path: Path) -> None:
    part = {label: name for name, labels in SPLIT.items() for label in labels}
    rows: list[tuple[str, ...]] = [(part[label], sentence, label) for sentence, label in ROWS]
    path = write_csv(tmp_path / "a.csv", rows, "part,text,label")
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, labels in SPLIT.items():
        (folder / f"{name}.txt").write_text("\n".join(labels), encoding="utf-8")
    for split in SPLITS:
        by_column = load(path, split, split_column="part")
        assert by_column.names == tuple(sorted(SPLIT[split]))
        assert equal(by_column, load(path, split))
        assert equal(by_column, load(path, split, lists=str(folder)))
    drawn = [load(path, split, ratios=[0.5, 0.2, 0.3], split_seed=1).names for split in SPLITS]
    assert [len(names) for names in drawn] == [3, 1, 2]
    assert sorted(sum(drawn, ())) == sorted(SENTENCES)
    assert drawn != [load(path, split, ratios=[0.5, 0.2, 0.3], split_seed=2).names for split in SPLITS]


def test_a_list_that_names_a_class_twice_names_it_once(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    (tmp_path / "twice.json").write_text(json.dumps(SPLIT | {"val": ["hello", "hello"]}))
    assert load(path, "val", lists="twice.json").names == ("hello",)


def test_two_ways_to_split_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="split_column and lists both say"):
        Text(split_column="part", lists="lists.json")


# What is refused

LABELS = {label for _, label in ROWS}
WRONG = {
    "an empty text": ("text,label\nhi,lost\n  ,lost\n", {}, "line 3: text is empty"),
    "an empty label": ("text,label\nhi,\n", {}, "line 2: label is empty"),
    "a label of two lines": ('text,label\nhi,"a\nb"\n', {}, "'a\\nb': a label must be one line"),
    "no column": ("texts,label\nhi,lost\n", {}, "has no column 'text'; did you mean texts?"),
    "no such split column": ("text,label\nhi,a\n", {"split_column": "part"}, "has no column 'part'"),
    "a row cut short": ("text,label\nhi,lost\nhello", {}, "line 3: 1 cells, where the header has 2"),
    "a quote cut short": ('text,label\n"hi,lost\n', {}, "is no table of text"),
    "nothing": ("", {}, "it is empty"),
    "no rows": ("text,label\n", {"ratios": [0.6, 0.2, 0.2]}, "0 classes cannot be split"),
    "a long text": (f"text,label\n{'a' * 100_001},lost\n", {}, "line 2: text has 100,001 characters, at most 100,000"),
    "a class in no list": ("\n".join(["text,label", *(f"hi,{c}" for c in LABELS), "x,odd"]), {},
                           "line 8: lists.json has no 'odd': put it in one of its lists"),
    "a list of a class that is not": ("text,label\nhi,lost\n", {}, "lists.json: class 'rate' and 1 more of train is"),
    "no split": ("part,text,label\ndev,hi,a\n", {"split_column": "part"}, "line 2: part is dev, not one of train,"),
    "a class in two": ("part,text,label\ntrain,hi,a\nval,ho,a\ntest,x,c\n", {"split_column": "part"},
                       "class 'a' is in both train and val"),
    "a split without classes": ("part,text,label\ntrain,hi,a\nval,ho,b\n", {"split_column": "part"},
                                "names no classes for test"),
    "two classes": ("text,label\nhi,a\nho,b\n", {"ratios": [0.6, 0.2, 0.2]}, "2 classes cannot be split"),
}  # fmt: skip
WRONG_LINES = {
    "no object": ('["hi", "lost"]', "line 1: is no json object"),
    "cut short": ('{"text": "hi", "label": "lo', "is no file of json lines"),
    "no column": ('{"text": "hi", "labels": "a"}', "line 1: has no 'label'; did you mean labels?"),
    "text that is a number": ('{"text": 3, "label": "a"}', "line 1: text is 3, where text is wanted"),
    "no text": ('{"text": null, "label": "a"}', "line 1: text is None, where text is wanted"),
    "a label that is a list": ('{"text": "hi", "label": ["a"]}', "line 1: label is ['a'], where text is wanted"),
    "a label that is true": ('{"text": "hi", "label": true}', "line 1: label is True, where text is wanted"),
    "half a character": ('{"text": "hi", "label": "\\ud800"}', "a label must be one line of text"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_are_refused(tmp_path: Path, case: str) -> None:
    content, more, message = WRONG[case]
    (tmp_path / "a.csv").write_text(content)
    said = refusal(lambda: load(tmp_path / "a.csv", **more))
    assert message in said
    assert "a.csv" in said or "lists.json" in said


@pytest.mark.parametrize("case", WRONG_LINES)
def test_json_lines_that_are_refused(tmp_path: Path, case: str) -> None:
    content, message = WRONG_LINES[case]
    (tmp_path / "a.jsonl").write_text(content)
    said = refusal(lambda: load(tmp_path / "a.jsonl"))
    assert message in said
    assert "a.jsonl" in said


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_that_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes('text,label\nschön,a\n{"text": "schön"}\n'.encode("latin-1"))
    assert "utf-8" in refusal(lambda: load(tmp_path / name))


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    assert "a.csv is no file; give the path of" in refusal(lambda: load(tmp_path / "a.csv"))
    assert "is no file" in refusal(lambda: load(tmp_path))
    assert "is no file" in refusal(lambda: Text(path="~nobody/a.csv").load("train", Place(tmp_path)))
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert "a.xlsx is neither .csv nor .jsonl" in refusal(lambda: load(tmp_path / "a.xlsx"))
    write_csv(tmp_path / "a.csv")
    assert "gone.json cannot be read" in refusal(lambda: load(tmp_path / "a.csv", lists="gone.json"))


@pytest.mark.parametrize(
    ("dataset", "home"), [(Clinc150(), "clinc/oos-eval"), (Banking77(), "PolyAI-LDN")], ids=["clinc150", "banking77"]
)
def test_published_files_that_are_not_there(tmp_path: Path, dataset: Sentences, home: str) -> None:
    said = refusal(lambda: dataset.load("train", Place(tmp_path, offline=True)))
    assert home in said
    assert "METARUN_DATA" in said
    assert str(tmp_path) in said


def test_published_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clinc(tmp_path / "published")
    write_banking(tmp_path / "published")
    root, asked = tmp_path / "data", []

    def fetch(name: str, urls: tuple[str, ...], checksum: str, into: Path, place: Place) -> Path:
        asked.append(name)
        into.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(tmp_path / "published" / into.relative_to(root) / name, into / name))

    monkeypatch.setattr(text, "fetch", fetch)
    for dataset in (Clinc150(), Banking77()):
        for split in SPLITS:
            assert equal(dataset.load(split, Place(root)), dataset.load(split, Place(tmp_path / "published")))
    assert asked == ["data_full.json", "train.csv", "test.csv"]


@pytest.mark.data
def test_the_files_at_hand_are_those_that_would_be_downloaded() -> None:
    folder = Path(os.environ["METARUN_DATA"]) / "text"
    for below, files in (("clinc150", (text.CLINC150_FILE,)), ("banking77", text.BANKING77_FILES)):
        for file in files:
            assert hashlib.sha256((folder / below / file.name).read_bytes()).hexdigest() == file.checksum


WRONG_JSON = [
    ("[]", "has no list 'train'"),
    ('{"train": [], "val": 3, "test": []}', "has no list 'val'"),
    ('{"train": [["hi"]], "val": [], "test": []}', "train[0] is no pair"),
    ('{"train": [["hi", 3.5]], "val": [], "test": []}', "train[0]: intent is 3.5, where text"),
    ('{"train": [["", "a"]], "val": [], "test": []}', "train[0]: sentence is empty"),
    ('{"train": [["hi", "a"]], "val": [], "test": []}', "has 1 sentences, where the published files have 15"),
    ('{"train": [["hi", "a"', "is cut short or damaged"),
    ("[" * 100_000, "is cut short or damaged"),
]


@pytest.mark.parametrize(("content", "message"), WRONG_JSON, ids=[message for _, message in WRONG_JSON])
def test_files_that_are_not_clinc150(tmp_path: Path, content: str, message: str) -> None:
    write_clinc(tmp_path).write_text(content)
    assert message in refusal(lambda: Clinc150().load("train", Place(tmp_path)))


def test_a_banking77_cut_between_two_lines_is_refused(tmp_path: Path) -> None:
    test = write_banking(tmp_path)[1]
    test.write_text("".join(test.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert "has 14 sentences, where the published files have 15" in refusal(
        lambda: Banking77().load("train", Place(tmp_path))
    )


def test_intents_that_are_not_those_of_the_split(tmp_path: Path) -> None:
    path = write_clinc(tmp_path)
    path.write_text(path.read_text().replace("weather", "climate"))
    assert "CLINC150's split: class 'weather' of test is not in the data" in refusal(
        lambda: Clinc150().load("train", Place(tmp_path))
    )
    path.write_text(path.read_text().replace('"is it cold out there", "climate"', '"is it cold out there", "weather"'))
    assert "CLINC150's split has no 'climate'" in refusal(lambda: Clinc150().load("train", Place(tmp_path)))


# The cache


def test_terms_are_made_once_and_again_when_a_sentence_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls, make = write_csv(tmp_path / "a.csv"), [], text.terms_of
    monkeypatch.setattr(text, "terms_of", lambda sentences: calls.append(1) or make(sentences))
    first = load(path)
    for split in SPLITS:
        load(path, split, buckets=64)
    assert len(calls) == 1
    assert equal(first, load(path))
    changed = load(write_csv(path, [*ROWS, ("one more", "lost")]))
    assert len(calls) == 2
    assert changed.digest() != first.digest()


def test_banks_made_otherwise_have_other_digests(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    banks = [load(path), load(path, "val"), load(path, idf=False), load(path, buckets=1024)]
    assert len({bank.digest() for bank in banks}) == len(banks)


# Sentence embeddings


class Model:
    """What `sentence_transformers.SentenceTransformer` does, on letters."""

    made = 0

    def __init__(self, path: str, local_files_only: bool = False) -> None:
        if not local_files_only:
            raise AssertionError("it could download")
        if (Path(path) / "broken").exists():
            raise KeyError("no\nweights")
        Model.made += 1

    def encode(self, sentences: list[str], convert_to_numpy: bool, normalize_embeddings: bool) -> Any:
        counts = torch.tensor([[sentence.count(letter) + 1.0 for letter in "aeiou"] for sentence in sentences])
        return (counts / counts.norm(dim=1, keepdim=True)).numpy()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model, and the package that loads it."""
    package: Any = ModuleType("sentence_transformers")
    package.SentenceTransformer = Model
    package.__spec__ = ModuleSpec("sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    monkeypatch.setattr(Model, "made", 0)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')
    return folder


def test_embeddings_of_a_local_model_are_items_made_once(tmp_path: Path, model: Path) -> None:
    path = write_csv(tmp_path / "a.csv")
    banks = [load(path, split, encoder=encoder) for split in SPLITS for encoder in ("model", str(model))]
    assert Model.made == 1
    assert all(bank.item_shape == (5,) for bank in banks)
    assert torch.equal(banks[2].items, torch.from_numpy(Model("", True).encode(SENTENCES["hello"], True, True)))
    (model / "weights").write_text("others")
    load(path, encoder="model")
    assert Model.made == 3


def test_a_model_that_cannot_be_used_is_refused(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "a.csv")
    assert "all-MiniLM is not there; give 'hashed'" in refusal(lambda: load(path, encoder="all-MiniLM"))
    (tmp_path / "empty").mkdir()
    assert "no sentence-transformers model" in refusal(lambda: load(path, encoder="empty"))
    (model / "broken").touch()
    assert "does not load (KeyError: 'no\\nweights')" in refusal(lambda: load(path, encoder="model")).replace(
        "\\\\", "\\"
    )
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert "pip install 'metarun[sentences]'" in refusal(lambda: load(path, encoder="model"))


@pytest.mark.parametrize("content", ['[{"type": "os.system"}]', "[]", "3", '{"type": 1}', "[", "[null]"])
def test_a_model_that_names_code_of_others_is_refused_before_it_is_loaded(
    tmp_path: Path, model: Path, content: str
) -> None:
    (model / "modules.json").write_text(content)
    refusal(lambda: load(write_csv(tmp_path / "a.csv"), encoder="model"))
    assert Model.made == 0


# Damage of any kind


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """Other bytes in some place, bytes that are missing, or just any bytes."""
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 8)) | st.just(len(whole)))
    put = data.draw(
        st.binary(max_size=8) | st.sampled_from([b'"', b",", b"\n", b"{", b"[", b"\0", b"\xff", b"\\ud800"])
    )
    return data.draw(st.sampled_from([whole[:start] + put + whole[end:], put * 3]))


def outside_the_cache(root: Path) -> dict[Path, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / "cache")]
    return {path: path.read_bytes() for path in files}


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("kind", ["csv", "jsonl", "lists", "clinc150", "banking77"])
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    dataset: Sentences = Text(path="own.csv", lists="lists.json", buckets=16)
    write_csv(tmp_path / "own.csv")
    file = write_lists(tmp_path / "lists.json")
    if kind == "csv":
        file = tmp_path / "own.csv"
    elif kind == "jsonl":
        file, dataset = write_jsonl(tmp_path / "own.jsonl"), replace(dataset, path="own.jsonl")
    elif kind == "clinc150":
        file, dataset = write_clinc(tmp_path), Clinc150(buckets=16)
    elif kind == "banking77":
        file, dataset = write_banking(tmp_path)[1], Banking77(buckets=16)
    file.write_bytes(damaged(data, file.read_bytes()))
    before = outside_the_cache(tmp_path)
    split = data.draw(st.sampled_from(SPLITS))
    try:
        bank = dataset.load(split, Place(tmp_path))
    except InputError as error:
        assert file.name in str(error) or file.parent.name in str(error) or "lists.json" in str(error)
    else:
        assert bank.items.isfinite().all()
        assert len(bank)
    assert outside_the_cache(tmp_path) == before


# The published files


@pytest.mark.data
@pytest.mark.parametrize(
    ("dataset", "classes", "sentences"),
    [(Clinc150(), (50, 50, 50), 22_499), (Banking77(), (25, 25, 27), 13_072)],
    ids=["clinc150", "banking77"],
)
def test_the_published_files(
    dataset: Sentences, classes: tuple[int, ...], sentences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    banks = [dataset.load(split, Place(Path(os.environ["METARUN_DATA"]))) for split in SPLITS]
    assert tuple(len(bank) for bank in banks) == classes
    assert sum(len(bank.items) for bank in banks) == sentences
    assert not {name for bank in banks for name in bank.names} & {"oos"}
