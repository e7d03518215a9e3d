"""Headers valid to the last byte or refused: mutations judged by `safe_open`, a table of faults, and valid oddities."""

import json
import re
import struct
import time
from math import prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

import model_tools as mt
from base_model.read.headers import BITS, read_header, read_valid_header

NAME = "model.safetensors"
DTYPES = ["F32", "BF16", "U8", "BOOL", "F8_E4M3", "I64", "F4", "F6_E2M3"]
SPACES = ["", " ", "\n\t", "  \r\n"]


def raw(text, data=b"", length=None):
    """A file: the length field, the header's text, the data."""
    text = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def text_of(**fields):
    """The JSON text of one entry, each field as JSON text; None leaves it out."""
    fields = {"dtype": '"F32"', "shape": "[2]", "data_offsets": "[0,8]"} | fields
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None) + "}"


A = text_of()
EIGHT = b"12345678"


# --- Mutations of valid headers, judged by safetensors and by a strict reading -----------------------------------


def by_safe_open(path):
    """`{(name, dtype, shape), ...}`, or None where safetensors refuses the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            parts = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
            return sorted((name, part.get_dtype(), tuple(part.get_shape())) for name, part in parts)
    except (SafetensorError, OSError):
        return None


def strict(file):
    """The header's entries, or None where a name stands twice, or text is not text."""

    def unique(pairs):
        if len(dict(pairs)) < len(pairs) and any(isinstance(value, dict) for _, value in pairs):
            raise ValueError
        return dict(pairs)

    try:
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")], object_pairs_hook=unique)
        metadata = header.pop("__metadata__", {}) or {}
        plain = file[8:9] == b"{" and all(isinstance(text, str) for text in metadata.values())
        whole = all(value.keys() >= entry().keys() and isinstance(value["dtype"], str) for value in header.values())
    except (ValueError, AttributeError, RecursionError):
        return None
    return header if plain and whole else None


def judge(path, file):
    """Refused in words, where safetensors or a strict reading refuses it too, or the very table of both."""
    path.write_bytes(file)
    expected, entries = by_safe_open(path), strict(file)
    try:
        header = read_header(path)
    except mt.ModelError as error:
        assert NAME in str(error)
        assert expected is None or entries is None, f"refused, but valid: {error}"
        return
    assert entries is not None, "accepted, but ambiguous"
    rows = list(zip(header.names, header.dtypes, header.shapes, strict=True))
    assert sorted(rows) == expected
    places = [entries[name]["data_offsets"] for name in header.names]
    assert places == sorted(places)
    assert header.sizes == [end - begin for begin, end in places]
    assert header.expected_bytes == header.file_bytes == len(file)


@st.composite
def models(draw):
    """A valid model as parts: entries as `[name, {field: JSON text}]`, metadata, and the size of the data."""
    letters = st.sampled_from(
        [*"ab:.,{}\"\\/'\n\0 é\u202e", "日", "🙂", "dtype", "__metadata__x", "file not fully covered"]
    )
    names = draw(st.lists(st.lists(letters, max_size=4).map("".join), unique=True, max_size=5))
    entries, end = [], 0
    for name in names:
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.lists(st.integers(0, 4), max_size=3)) + ([8] if BITS[dtype] % 8 else [])
        begin, end = end, end + prod(shape) * BITS[dtype] // 8
        fields = {"dtype": json.dumps(dtype), "shape": json.dumps(shape), "data_offsets": f"[{begin}, {end}]"}
        entries.append([json.dumps(name, ensure_ascii=draw(st.booleans())), fields])
    metadata = draw(
        st.none() | st.dictionaries(st.sampled_from(["format", "a:b", "dtype", ""]), st.just("pt:"), max_size=2)
    )
    return draw(st.permutations(entries)), metadata, end


VALUES = st.sampled_from(
    ['"F32"', '"F16"', '"f32"', '"F4"', '{"F32":null}', "null", "true", "-1", "2", "1.0", "1e2", "[]", "[2]", "[0,8]",
     "[8,0]", "[-1]", "[2.0]", "[0,8,8]", "[4,12]", "[18446744073709551615]", "[18446744073709551616,0]",
     "[9223372036854775808,4]", '["2"]', "[true]", "{}", '"file not fully covered"', "NaN", "[[2]]", "[0,0]"]
)  # fmt: skip
FIELDS = st.sampled_from(["dtype", "shape", "data_offsets", "extra", "Dtype"])


@st.composite
def mutants(draw):
    """A valid file with one to three things changed: in its parts, in its bytes, in its lengths."""
    entries, metadata, data = draw(models())
    parts = [[name, "{" + ",".join(f'"{f}":{v}' for f, v in fields.items()) + "}"] for name, fields in entries]
    if metadata is not None:
        parts.insert(0, ['"__metadata__"', json.dumps(metadata)])
    for _ in range(draw(st.integers(0, 2)) if parts else 0):
        part = draw(st.sampled_from(parts))
        kind = draw(st.sampled_from(["field", "remove", "again", "double", "escape", "array", "whole", "meta"]))
        fields = dict(draw(st.sampled_from(entries))[1]) if entries else {}
        if kind == "field":
            fields[draw(FIELDS)] = draw(VALUES)
        elif kind == "remove":
            fields.pop(draw(FIELDS), None)
        changed = [f'"{field}":{value}' for field, value in fields.items()]
        if kind == "double":
            changed += [f'"{draw(FIELDS)}":{draw(VALUES)}']
        part[1] = "{" + ",".join(changed) + "}"
        if kind == "array":
            part[1] = "[" + ",".join(fields.values()) + "]"
        elif kind == "whole":
            part[1] = draw(VALUES)
        elif kind == "meta":
            value = draw(
                st.sampled_from(["null", "{}", '{"a":"b","a":"c"}', '{"a":1}', '{"a":null}', '[["a","b"]]', '"x"'])
            )
            parts.append(['"__metadata__"', value])
        elif kind in ("again", "escape"):
            letters = "".join(f"\\u{ord(char):04x}" for char in json.loads(part[0]) if char < "\uffff")
            parts.append([f'"{letters}"' if kind == "escape" else part[0], part[1]])
    colon = draw(st.sampled_from(SPACES)) + ":"
    text = bytearray(("{" + ",".join(name + colon + value for name, value in parts) + "}").encode())
    text += draw(st.sampled_from([b"", b"    ", b"\n", b"\0", b"x"]))
    length = len(text) + draw(st.sampled_from([0] * 8 + [1, -1, 8, 10**6, 2**40, 2**63]))
    content = bytearray(raw(bytes(text), bytes(data), length % 2**64))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        byte = draw(st.sampled_from(b'\0\x01\xff\x80"{}[]:,0-9aF \\\n'))
        content[place : place + draw(st.integers(0, 2))] = [byte] * draw(st.integers(0, 2))
    end = draw(st.sampled_from([0] * 6 + [1, -1, 8, -8]))
    return bytes(content + b"x" * end if end >= 0 else content[:end])


QUIET = settings(
    max_examples=500, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@QUIET
@given(mutants())
def test_a_mutated_header_is_refused_or_read_as_safetensors_reads_it(tmp_path_factory, file):
    judge(tmp_path_factory.getbasetemp() / NAME, file)


@settings(QUIET, max_examples=400)
@given(st.data())
def test_bytes_of_a_real_header_may_be_anything(toy, tmp_path_factory, data):
    file = bytearray((toy / "model-00002-of-00003.safetensors").read_bytes())
    header = 8 + int.from_bytes(file[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header + 8))
        match data.draw(st.sampled_from(["flip", "insert", "remove", "copy", "cut"])):
            case "flip":
                file[place] ^= 1 << data.draw(st.integers(0, 7))
            case "insert":
                file.insert(place, data.draw(st.sampled_from(b'"{}[]:,0-9 \0\xff\\')))
            case "remove":
                del file[place]
            case "copy":
                file[place:place] = file[place : place + data.draw(st.integers(1, 120))]
            case "cut":
                del file[data.draw(st.integers(0, len(file))) :]
                break
    judge(tmp_path_factory.getbasetemp() / NAME, bytes(file))


# --- One row for each kind of fault: the file, and the words that its message must hold --------------------------

PHRASE = "file not fully covered"  # words of safetensors' own, here in a hostile name
FAULTS = {
    "nothing at all": (b"", "empty"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "ends within its header"),
    "length alone": (struct.pack("<Q", 16), "ends within its header"),
    "length 0": (raw(f'{{"a":{A}}}', EIGHT, 0), "does not begin with a header"),
    "length 1": (raw("{", EIGHT, 1), "does not begin with a header"),
    "zeros": (bytes(100), "begins with zeros"),
    "length past the end": (raw(f'{{"a":{A}}}', EIGHT, 100), "ends within its header"),
    "length of 2^63": (raw(f'{{"a":{A}}}', EIGHT, 2**63), ""),
    "length of 2^64 - 1": (raw(f'{{"a":{A}}}', EIGHT, 2**64 - 1), ""),
    "length too short": (raw(f'{{"a":{A}}}', EIGHT, 30), "EOF"),
    "length too long": (raw(f'{{"a":{A}}}', EIGHT, 56), "trailing characters"),
    "not UTF-8": (raw(b'{"a\xff":' + A.encode() + b"}", EIGHT), "UTF-8"),
    "UTF-16": (raw(f'{{"a":{A}}}'.encode("utf-16-le"), EIGHT), "invalid JSON"),
    "half a surrogate": (raw(f'{{"\\ud800":{A}}}', EIGHT), "invalid JSON"),
    "no JSON": (raw("{a}"), "invalid JSON"),
    "a list": (raw("[1]"), "does not begin with a header"),
    "NaN": (raw({"a": entry(shape=(float("nan"),))}, EIGHT), "invalid JSON"),
    "deep brackets": (raw('{"a":' + "[" * 100_000), "invalid JSON"),
    "padded with zeros": (raw(f'{{"a":{A}}}\0\0', EIGHT), "trailing characters"),
    "text after the header": (raw(f'{{"a":{A}}} x', EIGHT), "trailing characters"),
    "leading space": (raw(f' {{"a":{A}}}', EIGHT), "does not begin with a header"),
    "leading space, a pickle's first byte": (raw(" " + f'{{"a":{A}}}'.ljust(127), EIGHT), "does not begin with a header"),
    "a byte-order mark": (raw(f'\ufeff{{"a":{A}}}', EIGHT), "does not begin with a header"),
    "an entry that is null": (raw('{"a":null}'), "invalid JSON"),
    "an entry that is a number": (raw('{"a":5}'), "invalid JSON"),
    "an entry that is an array": (raw('{"a":["F32",[2],[0,8]]}', EIGHT), "a"),
    "arrays that hide a name twice": (raw("{" + ",".join(['"a":["F32",[2],[0,8]]'] * 4) + "}", EIGHT), "twice"),
    "name twice": (raw(f'{{"a":{A},"a":{A}}}', EIGHT), "a appears in it twice"),
    "name twice, escaped": (raw(f'{{"a":{A},"\\u0061":{A}}}', EIGHT), "a appears in it twice"),
    "name twice, spaces before colons": (raw(f'{{"a" :{A},"a"\n:{A}}}'.replace('":', '" :'), EIGHT), "twice"),
    "name twice, differing": (raw(f'{{"a":{A},"a":{text_of(dtype=json.dumps("I32"))}}}', EIGHT), "twice"),
    "name twice, data short": (raw(f'{{"a":{A},"a":{A}}}', EIGHT[:7]), "twice"),
    "name twice, not printable": (raw(f'{{"a\\n":{A},"a\\n":{A}}}', EIGHT), "a\\n appears in it twice"),
    "field twice": (raw(f'{{"a":{A[:-1]},"dtype":"F32"}}}}', EIGHT), "duplicate field"),
    "metadata twice": (raw(f'{{"__metadata__":{{}},"a":{A},"__metadata__":{{}}}}', EIGHT), "duplicate field"),
    "metadata a number": (raw('{"__metadata__":{"a":1}}'), "expected a string"),
    "metadata with null": (raw('{"__metadata__":{"a":null}}'), "expected a string"),
    "metadata nested": (raw('{"__metadata__":{"a":{"b":"c"}}}'), "expected a string"),
    "metadata a list": (raw('{"__metadata__":[]}'), "expected a map"),
    "no dtype": (raw(f'{{"a":{text_of(dtype=None)}}}', EIGHT), "missing field `dtype`"),
    "no shape": (raw(f'{{"a":{text_of(shape=None)}}}', EIGHT), "missing field `shape`"),
    "no offsets": (raw(f'{{"a":{text_of(data_offsets=None)}}}', EIGHT), "missing field `data_offsets`"),
    "unknown dtype": (raw({"a": entry("F33")}, EIGHT), "F33"),
    "dtype in lower case": (raw({"a": entry("f32")}, EIGHT), "f32"),
    "dtype null": (raw({"a": entry(None)}, EIGHT), "invalid JSON"),
    "dtype a number": (raw({"a": entry(32)}, EIGHT), "invalid JSON"),
    "dtype an object": (raw({"a": entry({"F32": None})}, EIGHT), "a"),
    "dtype with words of the library": (raw({"a": entry(PHRASE)}, EIGHT), "unknown variant"),
    "overlap under a name of the library's words": (raw({PHRASE: entry(offsets=(4, 12))}, EIGHT), "invalid offset"),
    "shape negative": (raw({"a": entry(shape=(-2,))}, EIGHT), "invalid JSON"),
    "shape a float": (raw(f'{{"a":{text_of(shape="[2.0]")}}}', EIGHT), "invalid JSON"),
    "shape an exponent": (raw(f'{{"a":{text_of(shape="[2e0]")}}}', EIGHT), "invalid JSON"),
    "shape a text": (raw({"a": entry(shape=("2",))}, EIGHT), "invalid JSON"),
    "shape true": (raw({"a": entry(shape=(True, 2))}, EIGHT), "invalid JSON"),
    "shape null": (raw(f'{{"a":{text_of(shape="null")}}}', EIGHT), "invalid JSON"),
    "shape a number": (raw(f'{{"a":{text_of(shape="2")}}}', EIGHT), "invalid JSON"),
    "shape beyond 64 bits": (raw({"a": entry(shape=(2**64,))}, EIGHT), "invalid JSON"),
    "shape overflows": (raw({"a": entry(shape=(2**33, 2**33))}, EIGHT), "overflow"),
    "shape overflows to what fits": (raw({"a": entry(shape=(2**63, 2, 2))}, EIGHT), "overflow"),
    "shape overflows in bytes": (raw({"a": entry(shape=(2**62,))}, EIGHT), "overflow"),
    "shape unlike its data": (raw({"a": entry(shape=(3,))}, EIGHT), "invalid shape"),
    "half a byte": (raw({"a": entry("F4", (3,), (0, 1))}, b"1"), "byte boundary"),
    "offsets of three": (raw(f'{{"a":{text_of(data_offsets="[0,8,8]")}}}', EIGHT), "invalid JSON"),
    "offsets of one": (raw(f'{{"a":{text_of(data_offsets="[8]")}}}', EIGHT), "invalid JSON"),
    "offsets negative": (raw({"a": entry(offsets=(-8, 0))}, EIGHT), "invalid JSON"),
    "offsets floats": (raw({"a": entry(offsets=(0.0, 8.0))}, EIGHT), "invalid JSON"),
    "offsets backwards": (raw({"a": entry(offsets=(8, 0))}, EIGHT), "invalid offset"),
    "offsets beyond the file": (raw({"a": entry(offsets=(2**63, 2**63 + 8))}, EIGHT), "invalid offset"),
    "a hole before": (raw({"a": entry(offsets=(8, 16))}, EIGHT * 2), "invalid offset"),
    "a hole between": (raw({"a": entry(), "b": entry(offsets=(16, 24))}, EIGHT * 3), "invalid offset"),
    "an overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, EIGHT * 2), "invalid offset"),
    "two in one place": (raw({"a": entry(), "b": entry()}, EIGHT), "invalid offset"),
    "data one byte short": (raw({"a": entry()}, EIGHT[:7]), "1 B short"),
    "data one byte long": (raw({"a": entry()}, EIGHT + b"9"), "too long"),
    "no data": (raw({"a": entry()}), "8 B short"),
    "data without tensors": (raw("{}", EIGHT), "too long"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
    "an HTML page": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
    "a JSON answer": (b'{"error": "Repository not found"}', "JSON text"),
    "a zip archive": (b"PK\x03\x04" + bytes(60), "zip archive"),
    "a pickle": (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "pickle"),
    "a pickle of protocol 5": (b"\x80\x05\x95\x16\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s.", "pickle"),
    "a gzip archive": (b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + bytes(40), "gzip"),
    "a GGUF file": (b"GGUF\x03\0\0\0" + bytes(40), "GGUF"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
    "noise": (b"\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82", "not a safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault, tmp_path):
    file, words = FAULTS[fault]
    (tmp_path / NAME).write_bytes(file)
    with pytest.raises(mt.ModelError) as told:
        mt.read_tensors(tmp_path)
    assert NAME in str(told.value)
    assert words in str(told.value)
    assert re.search("[Dd]ownload|find the model|Unpack", str(told.value)), "no next step"


@pytest.mark.parametrize("fault", ["data one byte short", "data one byte long", "no data", "data without tensors"])
def test_where_only_the_length_is_wrong_the_header_can_still_be_read(fault, tmp_path):
    file, _ = FAULTS[fault]
    (tmp_path / NAME).write_bytes(file)
    header = read_valid_header(tmp_path / NAME)
    assert header.file_bytes == len(file) != header.expected_bytes


def within(seconds, path):
    start = time.process_time()
    try:
        return read_header(path)
    finally:
        assert time.process_time() - start < seconds


def test_a_name_twice_among_many_is_found_at_once(tmp_path):
    names = [*range(20_000), 19_999]
    text = "{" + ",".join(f'"t{number}":{text_of(shape="[0]", data_offsets="[0,0]")}' for number in names) + "}"
    (tmp_path / NAME).write_bytes(raw(text))
    with pytest.raises(mt.ModelError, match="t19999 appears in it twice"):
        within(2, tmp_path / NAME)


def test_a_header_beyond_the_formats_limit_is_refused_unread(tmp_path):
    with (tmp_path / NAME).open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{}")
        file.truncate(8 + 100_000_001)
    with pytest.raises(mt.ModelError, match=r"model.safetensors.*100"):
        within(1, tmp_path / NAME)


# --- Valid oddities: the file, and the rows that it must give ----------------------------------------------------


def named(name):
    return raw({name: entry()}, EIGHT), [(name, "F32", (2,), 8)]


PADDED = raw(f'{{"a":{A}}}'.ljust(512), EIGHT), [("a", "F32", (2,), 8)]
ODDITIES = {
    "padded with spaces": PADDED,
    "padded with other white space": (raw(f'{{"a":{A}}}\n\t\r ', EIGHT), PADDED[1]),
    "white space everywhere": (raw(json.dumps({"a": entry()}, indent=3).replace(":", " \n:\t"), EIGHT), PADDED[1]),
    "no tensors": (raw("{}"), []),
    "metadata alone": (raw({"__metadata__": {"format": "pt"}}), []),
    "metadata empty": (raw({"__metadata__": {}, "a": entry()}, EIGHT), PADDED[1]),
    "metadata with colons": (raw({"__metadata__": {"a:b": "c:d:e"}, "a": entry()}, EIGHT), PADDED[1]),
    "metadata last, its name escaped": (raw(f'{{"a":{A},"\\u005f_metadata__":{{"x":"y"}}}}', EIGHT), PADDED[1]),
    "metadata null": (raw(f'{{"__metadata__":null,"a":{A}}}', EIGHT), PADDED[1]),
    "a note twice": (raw(f'{{"__metadata__":{{"a":"b","\\u0061":"c"}},"a":{A}}}', EIGHT), PADDED[1]),
    "metadata names a field": (raw({"__metadata__": {"dtype": "F32"}, "a": entry()}, EIGHT), PADDED[1]),
    "a scalar": (raw({"a": entry("F64", (), (0, 8))}, EIGHT), [("a", "F64", (), 8)]),
    "a zero-size tensor": (raw({"a": entry(shape=(0, 4), offsets=(0, 0))}), [("a", "F32", (0, 4), 0)]),
    "zero times the largest": (raw({"a": entry(shape=(0, 2**63), offsets=(0, 0))}), [("a", "F32", (0, 2**63), 0)]),
    "zero-size beside others": (
        raw({"b": entry(), "a": entry(shape=(0,), offsets=(0, 0)), "c": entry(shape=(0,), offsets=(8, 8))}, EIGHT),
        [("a", "F32", (0,), 0), ("b", "F32", (2,), 8), ("c", "F32", (0,), 0)],
    ),
    "header order unlike data order": (
        raw({"z": entry(offsets=(8, 16)), "__metadata__": {}, "y": entry(offsets=(16, 24)), "x": entry()}, EIGHT * 3),
        [("x", "F32", (2,), 8), ("z", "F32", (2,), 8), ("y", "F32", (2,), 8)],
    ),
    "the same under names with colons": (
        raw({"z:": entry(offsets=(8, 16)), "y": entry(offsets=(16, 24)), "x": entry()}, EIGHT * 3),
        [("x", "F32", (2,), 8), ("z:", "F32", (2,), 8), ("y", "F32", (2,), 8)],
    ),
    "fields in another order": (raw('{"a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}', EIGHT), PADDED[1]),
    "escaped field names": (raw(f'{{"a":{A}}}'.replace('"dtype"', '"\\u0064type"'), EIGHT), PADDED[1]),
    "many dimensions": (raw({"a": entry(shape=(1,) * 99 + (2,))}, EIGHT), [("a", "F32", (1,) * 99 + (2,), 8)]),
    "four bits": (raw({"a": entry("F4", (2, 3), (0, 3))}, b"123"), [("a", "F4", (2, 3), 3)]),
    "six bits": (raw({"a": entry("F6_E3M2", (4,), (0, 3))}, b"123"), [("a", "F6_E3M2", (4,), 3)]),
    "a pickle's first byte as the length": (raw(f'{{"a":{A}}}'.ljust(128), EIGHT), PADDED[1]),
    "an HTML page's first byte as the length": (raw(f'{{"a":{A}}}'.ljust(60), EIGHT), PADDED[1]),
    **{f"the name {name[:30]!a}": named(name) for name in (
        "", "a:b", 'a"b', "a\nb", "a\\b", "a\0b", "{}", "日本 🙂", "\u202eabc", "__metadata", "dtype", "x" * 10_000,
        "layers.99999999999999999999.weight", f"layers.{'9' * 5000}.weight", PHRASE,
    )},
    **{f"dtype {dtype}": (raw({"a": entry(dtype, (8,), (0, bits))}, bytes(bits)), [("a", dtype, (8,), bits)])
       for dtype, bits in BITS.items()},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Parameters are counted as stored", "ignore:.*holds no tensors")
@pytest.mark.parametrize("oddity", ODDITIES)
def test_an_oddity_is_read_right(oddity, tmp_path):
    file, rows = ODDITIES[oddity]
    (tmp_path / NAME).write_bytes(file)
    table = mt.read_tensors(tmp_path)
    assert list(table[["tensor", "dtype", "shape", "bytes"]].itertuples(index=False, name=None)) == rows
    assert list(table["elements"]) == [prod(shape) for _, _, shape, _ in rows]
    assert mt.check_model(tmp_path)["match"].all()
    judge(tmp_path / NAME, file)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (raw({"a": entry(strides=[1])}, EIGHT), "a with an unknown strides"),
        (raw(f'{{"a":{text_of(x="[" * 90 + "]" * 90)}}}', EIGHT), "unknown x"),
        (raw({"a": entry(**{"x\n": 1})}, EIGHT), "unknown x\\n"),
    ],
)
def test_a_surplus_field_is_told_and_the_rest_is_read(file, words, tmp_path):
    (tmp_path / NAME).write_bytes(file)
    with pytest.warns(mt.ModelWarning, match=re.escape(words)):
        header = read_header(tmp_path / NAME)
    assert (header.names, header.dtypes, header.shapes, header.sizes) == (["a"], ["F32"], [(2,)], [8])
    judge(tmp_path / NAME, file)


def test_every_dtype_of_safetensors_is_known(tmp_path):
    (tmp_path / NAME).write_bytes(raw({"a": entry("?")}))
    with pytest.raises(SafetensorError) as told, safe_open(tmp_path / NAME, framework="numpy"):
        pass
    assert sorted(str(told.value).split("`")[3::2]) == sorted(BITS)


def test_rows_that_share_a_place_come_in_the_same_order_every_time(tmp_path):
    nothing = entry(shape=(0,), offsets=(0, 0))
    (tmp_path / NAME).write_bytes(raw({f"z{number}": nothing for number in range(9)}))
    orders = {tuple(mt.read_tensors(tmp_path)["tensor"]) for _ in range(5)}
    assert len(orders) == 1


@pytest.mark.filterwarnings("ignore:Parameters are counted as stored")
@pytest.mark.parametrize(("colon", "count"), [("", 300_000), (":", 50_000)])
def test_300_000_tensors(tmp_path, colon, count):
    rows = (f'"t{colon}{number}":{text_of(dtype=json.dumps("U8"), shape="[1]", data_offsets=f"[{number},{number + 1}]")}'
            for number in range(count))  # fmt: skip
    (tmp_path / NAME).write_bytes(raw("{" + ",".join(rows) + "}", bytes(count)))
    start = time.process_time()
    table = mt.read_tensors(tmp_path)
    assert time.process_time() - start < 8
    assert (len(table), table["parameters"].sum(), table["tensor"].iloc[-1]) == (count, count, f"t{colon}{count - 1}")


@pytest.mark.parametrize("note", ["x", "x:"])
def test_a_header_of_30_mb(tmp_path, note):
    (tmp_path / NAME).write_bytes(
        raw({"__metadata__": {"note": note * (30_000_000 // len(note))}, "a": entry()}, EIGHT)
    )
    assert within(3, tmp_path / NAME).names == ["a"]


def test_a_header_of_the_formats_limit(tmp_path):
    (tmp_path / NAME).write_bytes(raw(f'{{"a":{A}}}'.ljust(100_000_000), EIGHT))
    assert within(5, tmp_path / NAME).header_bytes == 100_000_008
