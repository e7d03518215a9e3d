"""What is no training data: each refused with where and what to do, and nothing of it executed, sent or left behind."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys

import pytest

import model_tools as mt
from base_model.text import data
from tests.conftest import ROOT
from tests.text.data_folders import FORMATS, MARKED, bos_tokenizer, turn, write_lines

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def refused(tokenizers):
    """`refused(data)`: the sentence that says why."""

    def sentence(data, tokenizer="bytes", **settings):
        folder = tokenizers.get(tokenizer, tokenizer)
        with pytest.raises(mt.ModelError) as error:
            mt.text_lengths(folder, data, **settings)
        return str(error.value)

    return sentence


def lines(path, *rows):
    return write_lines(path / "data.jsonl", rows)


def test_no_such_file(refused, tmp_path):
    assert "There is no file" in refused(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl.gz", "data", "org/name", "https://example.org/data.arrow"])
def test_another_format(refused, name):
    assert "is not a .jsonl, .json, .csv, .parquet file" in refused(name)


def test_an_address_is_no_file(refused):
    assert "There is no file" in refused("https://example.org/data.jsonl")


def test_a_folder_and_a_pipe_are_no_files(refused, tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "There is no file" in refused(tmp_path / "folder.jsonl")
    assert "There is no file" in refused(tmp_path / "pipe.jsonl")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_what_is_compressed_is_not_unpacked(refused, tmp_path, suffix, pack):
    (tmp_path / f"data.{suffix}").write_bytes(pack(b'{"text": "a"}\n'))
    assert f"data.{suffix} is compressed" in refused(tmp_path / f"data.{suffix}")


@pytest.mark.parametrize("name", ["$WHO.jsonl", "${WHO}.jsonl", "a::b.jsonl"])
def test_a_name_that_means_another_file(refused, tmp_path, name, monkeypatch):
    monkeypatch.setenv("WHO", "joe")
    write_lines(tmp_path / name, [{"text": "a"}])
    write_lines(tmp_path / "joe.jsonl", [{"text": "b"}] * 7)
    assert "Rename it" in refused(tmp_path / name)


def test_a_parquet_file_without_rows(refused, tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"text": []}).to_parquet(tmp_path / "a.parquet")
    assert "a.parquet cannot be read: it holds no examples" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_an_empty_file(refused, tmp_path, suffix):
    (tmp_path / f"data.{suffix}").touch()
    assert f"data.{suffix} is empty" in refused(tmp_path / f"data.{suffix}")


@pytest.mark.parametrize(("name", "text"), [("a.csv", "text\n"), ("a.json", "[]"), ("a.jsonl", "\n\n")])
def test_a_file_without_rows(refused, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert name in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ('{"text": "a"}\n{"text": "b"\n', "line 2"),
        ('{"text": "a"}\n\n[1]\n', "line 3"),
        (f'{{"text": {"[" * 5000}{"]" * 5000}}}\n', "line 1"),
    ],
)
def test_broken_lines_of_json(refused, tmp_path, broken, line):
    (tmp_path / "data.jsonl").write_text(broken)
    assert f"data.jsonl cannot be read: {line} " in refused(tmp_path / "data.jsonl")


def test_bytes_that_are_no_text(refused, tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b'{"text": "a"}\n' * 3 + b'{"text": "\xff"}')
    assert "data.jsonl, row 3 (counted from 0): 'utf-8' codec" in refused(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("broken", "place"), [('[\n{"text": "a"},\n{"text" 1}]', "line 3"), ('[{"text": "a"}, 1]', "row 1")]
)
def test_a_broken_array_of_json(refused, tmp_path, broken, place):
    (tmp_path / "data.json").write_text(broken)
    assert f"data.json cannot be read: {place} " in refused(tmp_path / "data.json")


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"PAR1 no"), ("a.csv", b'text\n"a\nb,c,d\n')])
def test_other_broken_files(refused, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refused(tmp_path / name)


@pytest.mark.parametrize(("name", "begin"), [("a.jsonl", b'{"text": "'), ("a.csv", b"text\na\n"), ("a.json", b"[")])
def test_a_gigabyte_on_one_line(refused, tmp_path, name, begin):
    with (tmp_path / name).open("wb") as file:
        file.write(begin)
        file.truncate(2**30)
    said = refused(tmp_path / name)
    assert "one example per line" in said
    assert ("Line 3" if name == "a.csv" else "Line 1" if name == "a.jsonl" else "one array") in said


@pytest.mark.parametrize(
    ("name", "begin", "most"),
    [("a.jsonl", b'{"text": "', 16 * 2**20), ("a.csv", b"text\n", 16 * 2**20 + 5), ("a.json", b"[", 256 * 2**20)],
)
def test_a_line_or_an_array_may_be_as_long_as_the_limit(tmp_path, name, begin, most):
    path = tmp_path / name
    path.write_bytes(begin)
    os.truncate(path, most)
    data._require_short_lines(path)
    os.truncate(path, most + 1)
    with pytest.raises(mt.ModelError, match=r"16,777,216 bytes|the limit is 268,435,456"):
        data._require_short_lines(path)


def test_a_row_that_no_model_reads_at_once(refused):
    from datasets import Dataset

    assert "row 1 (counted from 0): it is longer" in refused(Dataset.from_dict({"text": ["a", "b" * (2**24 + 1)]}))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "answer": "b"}, "Its columns: `answer`, `question`"),
        ({"prompt": "a"}, "`completion` is missing next to `prompt`"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "`completion` is missing next to `prompt`"),
        ({"text": "a", "image": "b"}, "holds images"),
    ],
)
def test_columns(refused, tmp_path, row, words):
    assert words in refused(lines(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": 5}, "`text` is not text: 5"),
        ({"text": None}, "`text` is empty (null)"),
        ({"text": ["a"]}, "`text` is not text"),
    ],
)
def test_a_row_that_is_not_text(refused, tmp_path, row, words):
    assert f"data.jsonl, row 1 (counted from 0): {words}" in refused(lines(tmp_path, {"text": "a"}, row))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input_ids": [3, 260]}, "`input_ids` holds 260, and this model's ids go from 0 to 259"),
        ({"input_ids": [3, -1]}, "`input_ids` holds -1"),
        ({"input_ids": [3, 4], "labels": [3]}, "`labels` has 1 numbers for 2 tokens"),
    ],
)
def test_tokens_that_the_model_does_not_have(refused, tmp_path, row, words):
    assert f"data.jsonl, row 1 (counted from 0): {words}" in refused(lines(tmp_path, {"input_ids": [3]}, row))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "a conversation without a message"),
        (None, "is empty (null)"),
        ([turn("user", None)], "whose content is not text"),
        ([{"content": "a"}], "a message without a role"),
        ("Hi", "`messages` is not a list: 'Hi'"),
    ],
)
def test_a_conversation_that_is_none(refused, messages, words):
    from datasets import Dataset

    talks = [[turn("user", "a")], messages] if isinstance(messages, list | None) else [messages]
    if messages and isinstance(messages, list) and "role" not in messages[0]:
        talks = [messages]
    assert words in refused(Dataset.from_dict({"messages": talks}))


def test_a_role_that_the_template_refuses(refused, tmp_path):
    tokenizer = bos_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('No role ' + m.role) }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "strict")
    file = lines(tmp_path, *({"messages": [turn(role, "Hi")]} for role in ("user", "assistant", "critic")))
    said = refused(file, tmp_path / "strict")
    assert "data.jsonl, row 2 (counted from 0): the chat template refuses it: No role critic." in said


def test_a_conversation_for_a_base_model(refused, base_toy, tmp_path):
    said = refused(lines(tmp_path, FORMATS["messages"](1)), base_toy)
    assert "the tokenizer has no chat template" in said


def test_answers_that_no_template_marks(refused, tmp_path):
    said = refused(lines(tmp_path, FORMATS["messages"](1)), "bytes", assistant_only_loss=True)
    assert "marks no answers" in said


def test_a_template_that_a_row_brings_is_not_run(refused, tmp_path):
    row = FORMATS["messages"](1) | {"chat_template_kwargs": {"chat_template": "{{ 1 / 0 }}"}}
    assert "brings a chat template of its own" in refused(lines(tmp_path, row))


def test_data_in_hand_of_another_kind(refused):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"text": ["a"]})
    assert 'data["train"]' in refused(DatasetDict({"train": data}))
    assert "not list" in refused([{"text": "a"}])
    assert "a transform of its own" in refused(data.with_transform(lambda rows: 1 / 0))


@pytest.mark.parametrize("max_length", [0, 2.5, True, "8"])
def test_lengths_that_are_none(refused, tmp_path, max_length):
    assert "max_length must be a whole number" in refused(lines(tmp_path, {"text": "a"}), max_length=max_length)


def test_nothing_is_executed_sent_or_left(tmp_path):
    """A script beside the file, no network, a cache of its own: in a process with the Hub switched on."""
    data, home, temporary = (tmp_path / name for name in ("data", "home", "temporary"))
    for folder in (data, home, temporary):
        folder.mkdir()
    lines(data, {"text": "a"})
    for script in ("data.py", "dataset.py"):
        (data / script).write_text(f"open({str(data / 'executed')!r}, 'w')")
    code = (
        "import socket\n"
        "def stop(*arguments, **more): print('ASKED', arguments)\n"
        "socket.getaddrinfo = socket.socket.connect = socket.create_connection = stop\n"
        "import model_tools as mt\n"
        "from base_model.text.data import read_data\n"
        "print(len(read_data('data.jsonl')))\n"
        "for name in ('data.py', '.', 'dataset.py'):\n"
        "    try: read_data(name)\n"
        "    except mt.ModelError as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=data, env=environment, capture_output=True, text=True, timeout=120)
    said = done.stdout.splitlines()
    assert said[0] == "1", done.stderr
    assert len(said) == 4 and all("never a script" in line for line in said[1:])
    assert sorted(path.name for path in data.iterdir()) == ["data.jsonl", "data.py", "dataset.py"]
    assert [path.name for path in home.iterdir()] == [".cache"]
    assert [path.name for path in (home / ".cache").iterdir()] == ["huggingface"]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "template",
    ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'a' * 9999999999 }}"],
    ids=["time", "memory"],
)
def test_a_template_that_runs_away(own_cache, monkeypatch, refused, tmp_path, template):
    """In a process of its own, for one row only, which begins as all others do."""
    from base_model.text.processes import in_processes

    monkeypatch.setattr("base_model.text.lengths.in_processes", in_processes)
    tokenizer = bos_tokenizer()
    tokenizer.chat_template = "{% if messages[0].content == 'go' %}" + template + "{% endif %}" + MARKED
    tokenizer.save_pretrained(tmp_path / "wild")
    file = lines(tmp_path, *({"messages": [turn("user", text)]} for text in ("a", "b", "go", "c")))
    said = refused(file, tmp_path / "wild")
    assert "data.jsonl, row 2 (counted from 0)" in said
    assert "ran too long" in said or "Memory" in said


def test_two_processes_find_what_one_does(own_cache, monkeypatch, tokenizers, tmp_path):
    """What TRL warns of is handed on; what a launcher like torchrun sets does not reach them."""
    from base_model.text import processes

    monkeypatch.setattr(processes, "ROWS_FOR_A_PROCESS", 300)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda _: range(2))
    file = write_lines(tmp_path / "data.jsonl", map(FORMATS["prompt and completion"], range(600)))
    alone = mt.text_lengths(tokenizers["words"], file)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("base_model.text.lengths.in_processes", processes.in_processes)
    with pytest.warns(mt.ModelWarning, match="not a prefix"):
        together = mt.text_lengths(tokenizers["words"], file, max_length=10**6)
    assert together.drop(columns="max_length").equals(alone.drop(columns="max_length"))
