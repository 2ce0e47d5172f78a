"""One data set is the same rows in every shape, file format and compression, and in pieces."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft_ray import models
from raft_ray.config import ColumnsConfig, DataConfig, ModelConfig, OnBadRow
from raft_ray.data import Row, Source, check_rows, read_rows, read_table, write_bad_rows
from raft_ray.data.files import read_file
from raft_ray.data.normalise import visible
from raft_ray.errors import DataError
from raft_ray.models.prompts import PromptEncoder

Pairs = list[tuple[str, str]]
Write = Callable[[Path, list[dict[str, Any]]], None]


def parts(*said: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in said]


def chat(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


SHAPES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "prompt/answer": lambda q, a: {"prompt": q, "answer": a},
    "question/answer": lambda q, a: {"question": q, "answer": a},
    "instruction/input/output": lambda q, a: {"instruction": q, "input": "", "output": a},
    "prompt/completion": lambda q, a: {"prompt": q, "completion": a},
    "messages": lambda q, a: {"messages": chat(q, a)},
    "conversations": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "text parts": lambda q, a: {"messages": chat(parts(q), parts(a[: len(a) // 2], a[len(a) // 2 :]))},
    "named columns": lambda q, a: {"q": q, "a": a},
}


def as_lines(records: list[dict[str, Any]], **options: Any) -> bytes:
    return "".join(json.dumps(record, **options) + "\n" for record in records).encode()


def as_table(records: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO()
    names = list(records[0])
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    for record in records:
        writer.writerow([value if isinstance(value := record[name], str) else json.dumps(value) for name in names])
    return text.getvalue().encode("utf-8-sig")


def write_arrow(path: Path, records: list[dict[str, Any]], new: Any) -> None:
    table = pa.Table.from_pylist(records)
    with new(path, table.schema) as writer:
        writer.write_table(table)


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


FORMS: dict[str, tuple[str, Write]] = {
    "lines": ("a.jsonl", lambda path, rows: path.write_bytes(as_lines(rows))),
    "lines under another name": ("a.json", lambda path, rows: path.write_bytes(as_lines(rows, ensure_ascii=False))),
    "Windows lines": ("a.ndjson", lambda path, rows: path.write_bytes(as_lines(rows).replace(b"\n", b"\r\n"))),
    "array": ("a.json", lambda path, rows: path.write_bytes(json.dumps(rows).encode())),
    "array on many lines": ("a.jsonl", lambda path, rows: path.write_text(json.dumps(rows, indent=1), "utf-8-sig")),
    "CSV": ("a.csv", lambda path, rows: path.write_bytes(as_table(rows, ","))),
    "TSV": ("a.tsv", lambda path, rows: path.write_bytes(as_table(rows, "\t"))),
    "Parquet": ("a.parquet", lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)),
    "Arrow file": ("a.arrow", lambda path, rows: write_arrow(path, rows, pa.ipc.new_file)),
    "Arrow stream": ("a.arrow", lambda path, rows: write_arrow(path, rows, pa.ipc.new_stream)),
    "gzip": ("a.jsonl.gz", lambda path, rows: path.write_bytes(gzip.compress(as_lines(rows)))),
    "gzip in two members": (
        "a.jsonl.gz",
        lambda path, rows: path.write_bytes(gzip.compress(as_lines(rows[:1])) + gzip.compress(as_lines(rows[1:]))),
    ),
    "zstd": ("a.json.zst", lambda path, rows: path.write_bytes(zstd(json.dumps(rows).encode()))),
    "CSV in zstd": ("a.csv.zst", lambda path, rows: path.write_bytes(zstd(as_table(rows, ",")))),
    "TSV in gzip": ("a.tsv.gz", lambda path, rows: path.write_bytes(gzip.compress(as_table(rows, "\t")))),
}

# A table of text keeps no NUL, and a carriage return only with care.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=2, max_size=30).filter(
    lambda text: visible(text) and "\0" not in text and visible(text[: len(text) // 2])
)
PAIRS: Pairs = [
    ("What is 2 + 2?", "4"),
    ('Say "a, b"\nand\ttabs', "a,\n\n'b'\r\n;"),
    ("\u2028 žluť \ufeff", "👩\u200d👧 [1]"),
    ("Was ist\u00a0das?", "<|im_end|> {}"),
]


def rows_of(path: str | list[str], **settings: Any) -> list[Row]:
    config = DataConfig(columns=ColumnsConfig(**settings))
    rows, bad = read_rows(path, config, split="train")
    assert bad == []
    assert list(read_table(path, config, split="train")) == rows
    return rows


def said(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.index, row.messages, row.answer, row.answers, row.fused, row.rewrite) for row in rows]


def columns(shape: str) -> dict[str, str]:
    return {"prompt": "q", "answer": "a"} if shape == "named columns" else {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_format_gives_the_same_rows(shape: str, form: str, tmp_path: Path) -> None:
    expected = [(index, [{"role": "user", "content": q}], a, [a], None, None) for index, (q, a) in enumerate(PAIRS)]
    name, write = FORMS[form]
    write(tmp_path / name, [SHAPES[shape](q, a) for q, a in PAIRS])
    assert said(rows_of(str(tmp_path / name), **columns(shape))) == expected


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=5),
    shape=st.sampled_from(sorted(SHAPES)),
    form=st.sampled_from(sorted(FORMS)),
)
def test_whatever_the_texts_are_every_format_keeps_them(
    pairs: Pairs, shape: str, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, write = FORMS[form]
    path = tmp_path_factory.mktemp("data") / name
    write(path, [SHAPES[shape](q, a) for q, a in pairs])
    assert [(row.prompt, row.answer) for row in rows_of(str(path), **columns(shape))] == pairs


def test_seven_shapes_have_the_same_token_ids(tmp_path: Path, tiny_model: Path) -> None:
    encoder = PromptEncoder(models.load_chat(str(tiny_model), ModelConfig(path=str(tiny_model))), 512)
    found = []
    for number, (shape, record) in enumerate(SHAPES.items()):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(as_lines([record(q, a) for q, a in PAIRS]))
        rows = rows_of(str(path), **columns(shape))
        found.append([encoder.row(row.index, row.messages, row.answer, None, "row") for row in rows])
    assert len(found[0]) == len(PAIRS)
    assert all(other == found[0] for other in found)


# Several files


def several(folder: Path) -> list[str]:
    """Three files in as many formats, of which each has a bad row."""
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"prompt": "1", "answer": "x"}\n\nno\n{"prompt": "2", "answer": "x"}\n')
    (folder / "b.csv").write_text('question,answer\n3,x\n4,"two\nlines"\n5\n')
    (folder / "c.json").write_text('[{"prompt": "6", "completion": "x"},\n\n {"prompt": "7"}]')
    return [str(folder / name) for name in ("a.jsonl", "b.csv", "c.json")]


@pytest.mark.parametrize("kind", ["list", "glob", "folder"])
def test_several_files_are_read_one_after_the_other_and_bad_rows_name_theirs(tmp_path: Path, kind: str) -> None:
    names = several(tmp_path / "set")
    source: Source = {"list": names, "glob": f"{tmp_path}/*/[abc].*", "folder": str(tmp_path / "set")}[kind]
    rows, bad = read_rows(source, DataConfig(), split="train")
    assert [(row.index, row.prompt, row.line, row.file) for row in rows] == [
        *((0, "1", 1, names[0]), (1, "2", 4, names[0]), (2, "3", 2, names[1]), (3, "4", 3, names[1])),
        (4, "6", 1, names[2]),
    ]
    assert rows[3].where == f"row 3 of {names[1]}"
    with pytest.raises(DataError) as caught:
        check_rows(rows, bad, DataConfig(), "data.train")
    for told in (
        f"line 3 of {names[0]}: not JSON: Expecting value at column 1",
        f"line 5 of {names[1]}: has 1 fields, and the header has 2",
        f"row 2 of {names[2]}: field 'answer' is missing (fields there: prompt)",
    ):
        assert told in str(caught.value)
    write_bad_rows(bad, tmp_path / "bad.jsonl")
    assert [json.loads(line)["file"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == names
    # With `skip` what is trained on is on disk, with its file.
    table = read_table(source, DataConfig(on_bad_row=OnBadRow.skip), split="train")
    assert (list(table), list(table.bad)) == (rows, bad)


def test_the_limit_counts_over_all_sources(tmp_path: Path) -> None:
    names = several(tmp_path / "set")
    rows, _ = read_rows(["domain:chemistry:2", *names], DataConfig(limit=3), split="train")
    assert [row.file for row in rows] == ["domain:chemistry:2", "domain:chemistry:2", names[0]]


def test_a_missing_one_of_several_is_named_before_any_is_read(tmp_path: Path) -> None:
    names = several(tmp_path / "set")
    with pytest.raises(DataError, match=r"data\.train=.*none\.csv: no such file"):
        read_rows([*names, str(tmp_path / "none.csv")], DataConfig(), split="train")
    (tmp_path / "set" / "d.txt").touch()
    with pytest.raises(DataError, match=r"matches .*d\.txt, which is of an unknown file type"):
        read_rows(f"{tmp_path}/set/*", DataConfig(), split="train")


def test_a_folder_with_a_readme_is_left_to_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "mine.jsonl").write_bytes(as_lines([{"prompt": "q", "answer": "a"}]))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: held\n    path: mine.jsonl\n---\n"
    )
    for streaming in (False, True):
        config = DataConfig(train_split="held", streaming=streaming)
        (row,), _ = read_rows(str(folder), config, split="train")
        assert (row.prompt, row.answer) == ("q", "a")


def test_a_hub_name_is_asked_for_by_split_and_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, configuration: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, configuration, split, streaming))
        return iter([{"question": f"q{n}", "answer": "a"} for n in range(9)])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    config = DataConfig(train_split="train[:50%]", streaming=True, limit=2)
    rows, _ = read_rows("owner/name:main", config, split="train")
    assert [row.prompt for row in rows] == ["q0", "q1"]
    assert asked == [("owner/name", "main", "train[:50%]", True)]


# What is wrong with a row


@pytest.mark.parametrize(
    ("content", "bad"),
    [
        (b"prompt,answer\nq,a\nq,a,b\nq,a\n", "line 3: has 3 fields, and the header has 2"),
        (b"prompt,answer\nq,a\nGr\xf6\xdfe,a\nq,a\n", "line 3: not UTF-8"),
        (b'prompt,answer\nq,a\nq,"a"b\nq,a\n', "line 3: not CSV: ',' expected after '\"'"),
        (b'prompt,answer\n"q\n1",a\nq,\nq,a\n', "line 4: field 'answer' is missing (fields there: prompt)"),
        (b"prompt,answer\n\nq,a\n,a\nq,a\n", "line 4: field 'prompt' is missing (fields there: answer)"),
    ],
)
def test_a_bad_record_of_a_table_is_named_by_its_first_line(tmp_path: Path, content: bytes, bad: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    rows, found = read_rows(str(path), DataConfig(), split="train")
    assert len(rows) == 2
    assert [f"{row.unit} {row.line}: {row.reason}" for row in found] == [bad]


def test_a_bad_element_of_an_array_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    good = b'{"prompt": "q", "answer": "a"}'
    path.write_bytes(b",".join([good, b'{"a": 1, "a": 2}', b"12", b'{"prompt": "\xff"}', good]).join([b"[", b"]"]))
    rows, bad = read_rows(str(path), DataConfig(), split="train")
    assert [row.line for row in rows] == [1, 5]
    assert [(row.unit, row.line, row.reason) for row in bad] == [
        ("row", 2, "field 'a' stands twice in an object"),
        ("row", 3, "not a JSON object"),
        ("row", 4, "not UTF-8"),
    ]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_an_array_is_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("raft_ray.data.files._CHUNK", chunk)
    records = [{"a": 'ž\\"]', "b": [1.5e3, True, None, {"c": 123456}]}, {"d": "\U0001f600"}, {}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records, indent=2) + "\n \n")
    assert [record for _, record in read_file(path, "")] == records
    path.write_text(json.dumps(records, ensure_ascii=True, separators=(",", ":")))
    assert [record for _, record in read_file(path, "")] == records


def test_text_of_a_parquet_file_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    answers = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"prompt": ["1", "2", "3"], "answer": answers}), tmp_path / "a.parquet")
    rows, bad = read_rows(str(tmp_path / "a.parquet"), DataConfig(), split="train")
    assert [row.prompt for row in rows] == ["1", "3"]
    assert [(row.line, row.reason) for row in bad] == [(2, "not UTF-8")]
