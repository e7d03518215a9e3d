"""Every folder a user can point at: what each function says of it. Right results, a warning or `ModelError`, soon."""

import json
import os
import shutil
import signal
import socket
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest

import model_tools as mt
from base_model.architecture.config import read_architecture
from base_model.read.folder import _gaps, is_file, is_folder, read_json
from tests.folders import toy_tokenizer, write_tensors, write_toy

CONFIG, INDEX, ONE, TOKENIZER = "config.json", "model.safetensors.index.json", "model.safetensors", "tokenizer.json"
S1, S2, S3 = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
SETTINGS, TEMPLATE, GENERATION = "tokenizer_config.json", "chat_template.jinja", "generation_config.json"
DEEP = "[" * 100_000

FUNCTIONS = {
    "list": mt.list_files,
    "read": mt.read_tensors,
    "check": mt.check_model,
    "fetch": mt.fetch_model,
    "load": mt.load_model,
    "tokenizer": mt.describe_tokenizer,
}
WEIGHTS = "read check fetch load"  # the functions that need whole, agreeing weights
ALL = " ".join(FUNCTIONS)


class Hang(BaseException):
    """A function did not come back."""


@contextmanager
def an_alarm(seconds):
    """Interrupt what waits for ever: a pipe without a writer, a loop."""

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(function, folder):
    """Whether it returned, and all it said: the error, the warnings, the checks that do not match. ModelError only."""
    with warnings.catch_warnings(record=True) as caught, an_alarm(40):
        warnings.simplefilter("always")
        try:
            table = function(folder)
            failed = table[~table["match"]].to_numpy() if function is mt.check_model else []
            error = ""
        except mt.ModelError as wrong:
            error, failed = str(wrong), []
    said = [str(entry.message) for entry in caught if issubclass(entry.category, mt.ModelWarning)]
    return not error, "\n".join([error, *said, *(" ".join(map(str, row)) for row in failed)])


def soon(function, folder):
    """The same, within 2 s; a second try, with more time, forgives a busy machine."""
    start = time.process_time()
    answer = call(function, folder)
    if time.process_time() - start > 2:
        start = time.process_time()
        answer = call(function, folder)
        assert time.process_time() - start < 5, "too slow"
    return answer


# --- Ways to damage a folder: each gives a function that takes the folder ----------------------------------------


def edit(name, **fields):
    """Set fields of a JSON file; a dict is merged into the one that is there."""

    def damage(folder):
        content = json.loads((folder / name).read_text())
        for field, value in fields.items():
            nested = isinstance(value, dict) and isinstance(content.get(field), dict)
            content[field] = content[field] | value if nested else value
        (folder / name).write_text(json.dumps(content))

    return damage


def replace(name, **fields):
    """Set fields of a JSON file, whole."""
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))


def config(**fields):
    return replace(CONFIG, **fields)


def write(name, content):
    def damage(folder):
        remove(name)(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def remove(*names):
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


def keep(*names):
    """Remove all others."""
    return lambda folder: [path.unlink() for path in folder.iterdir() if path.name not in names]


def link(name, target):
    def damage(folder):
        remove(name)(folder)
        (folder / name).symlink_to(target)

    return damage


def pipe(name):
    return lambda folder: (remove(name)(folder), os.mkfifo(folder / name))


def directory(name):
    return lambda folder: (remove(name)(folder), (folder / name).mkdir())


def plug(name):
    """A socket: it lasts as a file."""

    def damage(folder):
        remove(name)(folder)
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as end:
            end.bind(f"{short}/s")
            shutil.move(f"{short}/s", folder / name)

    return damage


def move(name, new):
    return lambda folder: (folder / name).rename(folder / new) and None


def copy(name, new):
    return lambda folder: shutil.copyfile(folder / name, folder / new) and None


def swap(first, second):
    return both(move(first, "between"), move(second, first), move("between", second))


def cut(name, by):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - by)


def both(*damages):
    return lambda folder: [damage(folder) for damage in damages] and None


def stored(folder, *files):
    """The tensors of these files, with their weights."""
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(folder / file).items()}


def single(folder):
    """The shards as one file."""
    from safetensors.torch import save_file

    save_file(stored(folder, S1, S2, S3), folder / ONE, {"format": "pt"})


def alone(folder):
    single(folder)
    remove(INDEX, S1, S2, S3)(folder)


def gap(folder):
    """The second and the third shard go on as the third and the fourth of four; the index follows."""
    names = {S1: "model-00001-of-00004.safetensors", S2: "model-00003-of-00004.safetensors"}
    names[S3] = "model-00004-of-00004.safetensors"
    for old, new in names.items():
        move(old, new)(folder)
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"] = {tensor: names[file] for tensor, file in content["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(content))


def place(name, shard):
    return edit(INDEX, weight_map={name: shard})


def stale(folder):
    """A shard of the same names and shapes as before, but one; its index moved on."""
    from safetensors.torch import save_file

    tensors = stored(folder, S2)
    first, *_ = tensors
    tensors["old." + first] = tensors.pop(first)
    save_file(tensors, folder / S2, {"format": "pt"})


def twice(folder):
    """A tensor of the second shard in the first one, too."""
    from safetensors.torch import save_file

    name, *_ = more = stored(folder, S2)
    save_file(stored(folder, S1) | {name: more[name]}, folder / S1, {"format": "pt"})


def into(sub):
    """Move everything into a folder below: the folder that is given is a parent."""

    def damage(folder):
        names = list(folder.iterdir())
        (folder / sub).mkdir(parents=True)
        for path in names:
            path.rename(folder / sub / path.name)

    return damage


def snapshot(folder):
    """The layout of the Hub's cache: `blobs/` with the files, `snapshots/<commit>/` with links to them."""
    blobs, commit = folder / "blobs", folder / "snapshots" / "abc123"
    names = list(folder.iterdir())
    blobs.mkdir()
    commit.mkdir(parents=True)
    for number, path in enumerate(names):
        path.rename(blobs / f"{number:064x}")
        (commit / path.name).symlink_to(f"../../blobs/{number:064x}")
    return commit


def cache(folder):
    """A whole Hub cache, with one model in it."""
    into("models--org--name")(folder)
    snapshot(folder / "models--org--name")


def outside(name):
    """A file moved away, a link to it left behind."""

    def damage(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return damage


def trap(folder):
    """The files of remote code; whoever imports or unpickles them leaves a mark."""
    mark = f"open({str(folder.parent / 'marker')!r}, 'w')"
    (folder / "evil.py").write_text(f"{mark}\n")
    code = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel"), "evil.Evil")
    config(auto_map=code)(folder)
    replace(SETTINGS, auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})(folder)


def pickled(name):
    def damage(folder):
        mark = str(folder.parent / "marker").encode()
        (folder / name).write_bytes(b"\x80\x02cbuiltins\nopen\n(V" + mark + b"\nVw\ntR.")

    return damage


def tiny(model_type, **settings):
    """A real model of another architecture in place of the toy."""

    def damage(folder):
        from transformers import AutoConfig, AutoModelForCausalLM

        keep()(folder)
        built = AutoConfig.for_model(model_type, vocab_size=260, **settings)
        AutoModelForCausalLM.from_config(built).save_pretrained(folder)
        toy_tokenizer(chat=False).save_pretrained(folder)

    return damage


def header(tensors):
    return lambda folder: (keep(CONFIG, TOKENIZER, SETTINGS)(folder), write_tensors(folder / ONE, tensors))


gptj = tiny("gptj", n_positions=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8)
mamba = tiny("mamba", hidden_size=32, num_hidden_layers=2, state_size=4, conv_kernel=2)
old_gpt2 = tiny("gpt2", n_positions=64, n_embd=32, n_layer=2, n_head=2)


def with_masks(folder):
    from safetensors.torch import load_file, save_file
    from torch import ones

    old_gpt2(folder)
    masks = {f"transformer.h.{layer}.attn.bias": ones(1, 1, 64, 64).tril().bool() for layer in (0, 1)}
    save_file(load_file(folder / ONE) | masks, folder / ONE, {"format": "pt"})


# --- The table: the damage, which functions must tell of it, and words that they must say ------------------------
# A function that is not named must return; one with a `?` may tell, as all may where there is None.
# `GOOD` rows: every function returns, and no check fails.

GOOD = ""
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4000\n"
LOOK_ALIKES = {
    "a git-lfs pointer": (LFS, "a git-lfs pointer"),
    "an HTML page": ("<!doctype html><title>404</title>", "HTML"),
    "an XML error": ("<?xml version='1.0'?><Error/>", "XML"),
    "a JSON error": ('{"error": "Entry not found"}', "JSON"),
    "a zip archive": (b"PK\x03\x04" + bytes(90), "zip"),
    "a gzip archive": (b"\x1f\x8b\x08" + bytes(90), "gzip"),
    "GGUF weights": (b"GGUF\x03" + bytes(90), "GGUF"),
    "an empty file": ("", "empty"),
    "zeros": (bytes(40_208), "zeros"),
}
NO_SHARD = {
    "../ in it": "../x.safetensors", "an absolute path": "/etc/x.safetensors", "a pickle": "pytorch_model.bin",
    "a file of a subfolder": "sub/x.safetensors", "a backslash": "..\\x.safetensors", "a zero": "\0.safetensors",
    "nothing": "", "null": None, "a number": 5, "a list": [S1], "an object": {S1: 1}, "true": True, "dots": "..",
    "a trailing space": f"{S1} ", "a trailing newline": f"{S1}\n", "an upper-case suffix": "X.SAFETENSORS",
}  # fmt: skip
NO_COUNT = {
    "text": "5", "NaN": float("nan"), "negative": -1, "infinite": float("inf"), "true": True, "null": None,
    "a list": [1], "an object": {}, "a fraction": 1.5,
}  # fmt: skip
NO_JSON = {
    "empty": b"", "no JSON": b"{", "deep brackets": DEEP.encode(), "deep objects": b'{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff"}', "UTF-16": '{"a": 1}'.encode("utf-16"), "a long number": b'{"a": ' + b"9" * 5000 + b"}",
    "a list": b"[]", "null": b"null", "a text": b'"x"', "a number": b"5", "HTML": b"<html>", "a pointer": LFS.encode(),
    "zeros": bytes(99),
}  # fmt: skip
ABSURD = {
    "num_hidden_layers": [10**9, 10**30, -1, "x", float("nan"), float("inf"), [], {}, 1.5],
    "hidden_size": [10**9, 10**30, -1, 0, "x", None, float("nan"), []],
    "vocab_size": [10**9, -1, "x", float("nan"), {}],
    "num_attention_heads": [10**9, 0, -1, "x", float("nan"), 3],
    "intermediate_size": [10**9, -1, "x", None, 3],
    "num_key_value_heads": [10**9, 0, -1, "x", 3],
    "head_dim": [10**9, -1, "x", float("nan"), 3],
    "num_labels": [10**9, 10**30],
    "hidden_act": ["x", 5, [], {}],
    "rms_norm_eps": ["x", []],
    "rope_parameters": ["x", 5, [], {"rope_type": "x"}],
    "dtype": ["x", 5, [], "no_grad"],
    "layer_types": ["x", 5, [5], {}],
    "quantization_config": ["x", [1], {"bits": 4}, {"quant_method": ["gptq"]}, 5],
    "model_type": [None, 5, [], {}, "", "x", "musicgen", "lxmert", "encoder-decoder", "clip", "t5"],
    "text_config": ["x", 5, []],
}  # fmt: skip

ROWS = {
    "whole": (lambda folder: None, GOOD, ""),
    "one file": (alone, GOOD, ""),
    "a Hub cache snapshot": (snapshot, GOOD, ""),
    "a snapshot behind a link": (lambda folder: (link("main", snapshot(folder))(folder), folder / "main")[1], GOOD, ""),
    "a shard linked within": (both(move(S2, "blob"), link(S2, "blob")), GOOD, ""),
    "incomplete leftovers": (
        both(write(f".cache/huggingface/download/{S2}.incomplete", "x"), write(f"{S2}.incomplete", "x")), GOOD, "",
    ),
    "files of another computer": (
        both(write("._model.safetensors", "x"), write(f"._{S1}", "x"), write(".DS_Store", "x"), write("._config.json", "x")),
        GOOD, "",
    ),
    "names with anything in them": (
        lambda folder: [
            (folder / os.fsdecode(name)).write_bytes(b"x")
            for name in (b"a b.txt", b"a\nb.txt", b"<img src=x>.txt", rb"$\frac.txt", b"\xff.txt", "\u202etxt.bin".encode())
        ] and None, GOOD, "",
    ),
    "totals as floats": (lambda folder: edit(INDEX, metadata={"total_size": 107_648.0})(folder), GOOD, ""),
    "an index without totals": (replace(INDEX, metadata={}), GOOD, ""),
    "a Mamba with a short kernel": (mamba, GOOD, ""),
    "an old GPT-2 with its masks": (with_masks, GOOD, ""),
    "a hidden adapter": (write(".adapter_config.json", "x"), GOOD, ""),
    # the weights
    **{f"a shard is {kind}": (write(S2, content), "list " + WEIGHTS, f"{S2} is {words}" if "a git" in words else words)
       for kind, (content, words) in LOOK_ALIKES.items()},
    "a shard is a pickle": (pickled(S2), "list " + WEIGHTS, "Python pickle"),
    "a shard cut short": (cut(S2, 1), "list " + WEIGHTS, S2),
    "a shard cut within its header": (cut(S2, 40_000), "list " + WEIGHTS, "ends within its header"),
    "a shard too long": (lambda folder: (folder / S2).open("ab").write(b"x") and None, "list " + WEIGHTS, S2),
    "a shard missing": (remove(S2), WEIGHTS, f"{S2} is missing"),
    "a shard still coming": (move(S2, f"{S2}.incomplete"), WEIGHTS, f"{S2} is missing"),
    "a shard a link to nothing": (link(S2, "nothing"), WEIGHTS, f"{S2} is missing (it is a broken link)"),
    "a shard a link to itself": (link(S2, S2), WEIGHTS, S2),
    "a shard linked from elsewhere": (outside(S2), WEIGHTS, f"{S2} is a link that leads out of"),
    "a shard linked to a device": (link(S2, "/dev/zero"), WEIGHTS, S2),
    "a shard linked through a folder that leaves": (
        lambda folder: (shutil.copytree(folder, folder.parent / "other"), link("x", "../other")(folder),
                        link(S2, f"x/{S2}")(folder))[0] and None, WEIGHTS, "leads out of",
    ),
    "a shard linked to what is no cache": (
        lambda folder: (into("x/y")(folder), (folder / "blobs").mkdir(), (folder / "x/y" / S2).rename(folder / "blobs/b"),
                        link(f"x/y/{S2}", "../../blobs/b")(folder), folder / "x/y")[-1], WEIGHTS, "leads out of",
    ),
    "a snapshot linked to what is no blob": (
        lambda folder: (commit := snapshot(folder), (commit / S2).resolve().rename(folder / "b"),
                        link(f"snapshots/abc123/{S2}", "../../b")(folder), commit)[-1], WEIGHTS, "leads out of",
    ),
    "one file linked from elsewhere": (both(alone, outside(ONE)), WEIGHTS, f"{ONE} is a link that leads out of"),
    "a shard a pipe": (pipe(S2), WEIGHTS, f"{S2} is a pipe"),
    "a shard a socket": (plug(S2), WEIGHTS, S2),
    "a shard a folder": (directory(S2), WEIGHTS, f"{S2} is a folder"),
    "one file a pipe": (both(alone, pipe(ONE)), WEIGHTS, f"{ONE} is a pipe"),
    "one file a folder": (both(alone, directory(ONE)), WEIGHTS, f"{ONE} is a folder"),
    "one file a link to itself": (both(alone, link(ONE, ONE)), WEIGHTS, ONE),
    "one file a link to nothing": (both(alone, link(ONE, "nothing")), WEIGHTS, "broken link"),
    "two shards swapped": (swap(S1, S2), "read check load", "model-0000"),
    "a shard twice": (copy(S1, S2), "read check load", S2),
    "a stale shard": (stale, "read check load", S2),
    "tensors in the index but in no shard": (place("ghost", S2), "read check load", S2),
    "tensors in a shard but not in the index": (
        lambda folder: replace(INDEX, weight_map={name: shard for name, shard in json.loads(
            (folder / INDEX).read_text())["weight_map"].items() if name != "model.norm.weight"})(folder),
        "read check load", "-of-00003",
    ),
    "a tensor in two shards": (twice, "read check load", S1),
    "two shards missing": (remove(S2, S3), WEIGHTS, {"fetch": f"{S2} is missing; {S3} is missing", "": S2}),
    "everything missing but a picture": (
        both(keep(), write("a.png", "x")), WEIGHTS + " tokenizer",
        {"fetch": "config.json is missing; the tokenizer is missing (tokenizer.json, tokenizer.model, spiece.model, ...); "
                  "the weights are missing", "tokenizer": "tokenizer", "": ""},
    ),
    "a gap in the numbering": (both(move(S2, "model-00004-of-00004.safetensors")), WEIGHTS, f"{S2} is missing"),
    "a gap without an index": (remove(INDEX, S2), WEIGHTS, "2 of 3 shards are there, but not their index"),
    "shards without an index": (remove(INDEX), WEIGHTS, "3 of 3 shards are there, but not their index"),
    "one file and shards together": (single, "read load", f"{S1}, {S2}, {S3}: in the folder"),
    "one file beside an index of nothing": (both(single, remove(S1, S2, S3), write(INDEX, "{}")), WEIGHTS, "ignored: "),
    "one file beside an index that is no JSON": (both(single, write(INDEX, "{")), WEIGHTS, "ignored: "),
    "a gap in the shards on which the index agrees": (gap, "read check load", "model-00002-of-00004.safetensors is missing"),
    "a model of no tensors": (header({}), "read check load", f"{ONE} holds no tensors"),
    "a download that aria2 did not finish": (write(f"{S2}.aria2", "x"), "read check load", f"{S2} is not fully downloaded"),
    "a settings file that aria2 did not finish": (write(f"{CONFIG}.aria2", "x"), "read check load", f"{CONFIG} is not fully downloaded"),
    "a control file of aria2 alone": (write("x.aria2", "x"), GOOD, ""),
    "a stray shard": (copy(S2, "model-x.safetensors"), "read load", "model-x.safetensors: in the folder"),
    "a broken stray": (write("model.old.safetensors", "x"), "list read load", "model.old.safetensors"),
    "a broken file in a folder": (write("a\nb.safetensors", LFS), "list", "a\\nb.safetensors is a git-lfs"),
    "no weights": (remove(INDEX, S1, S2, S3), WEIGHTS, "no model.safetensors"),
    "no weights but an index": (remove(S1, S2, S3), WEIGHTS, S1),
    "pickles only": (both(alone, move(ONE, "pytorch_model.bin")), WEIGHTS, "pytorch_model.bin holds PyTorch pickles"),
    "pickles that would run": (both(alone, remove(ONE), pickled("pytorch_model.bin")), WEIGHTS, "pytorch_model.bin"),
    "pickles that would run, beside the model": (pickled("pytorch_model.bin"), GOOD, ""),
    "an index that leads to a pickle": (both(pickled("x.bin"), place("model.norm.weight", "x.bin")), WEIGHTS, "x.bin"),
    "an index of pickles": (
        both(alone, remove(ONE), pickled("a.bin"), write("pytorch_model.bin.index.json", '{"weight_map": {"a": "a.bin"}}')),
        WEIGHTS, "a.bin holds PyTorch pickles",
    ),
    "GGUF only": (both(alone, move(ONE, "m.Q4.gguf")), WEIGHTS, "m.Q4.gguf holds GGUF weights"),
    "ONNX only": (both(alone, move(ONE, "m.onnx")), WEIGHTS, "m.onnx holds ONNX weights"),
    "TensorFlow only": (both(alone, move(ONE, "tf_model.h5")), WEIGHTS, "tf_model.h5 holds TensorFlow weights"),
    "an adapter only": (
        both(keep(), write("adapter_config.json", '{"base_model_name_or_path": "org/ba\\nse"}'),
             lambda folder: write_tensors(folder / "adapter_model.safetensors", {"a": ("F32", (2,))})),
        WEIGHTS + " tokenizer", {"tokenizer": "tokenizer", "": "adapter for the base model org/ba\\nse"},
    ),
    "an adapter only, its config broken": (
        both(keep(), write("adapter_config.json", DEEP)), WEIGHTS + " tokenizer",
        {"tokenizer": "tokenizer", "": "adapter_config.json is not valid JSON"},
    ),
    "an adapter beside the model": (write("adapter_config.json", "{}"), "load", "Move adapter_config.json away"),
    "an adapter's config a pipe": (pipe("adapter_config.json"), "load", "adapter_config.json"),
    "a repository's root in a cache": (lambda folder: snapshot(folder) and None, ALL, "snapshots/abc123"),
    "a cache's root": (cache, ALL, "models--org--name/snapshots/abc123"),
    "a cache's home": (
        both(into("hub"), lambda folder: cache(folder / "hub")), ALL, "hub/models--org--name/snapshots/abc123",
    ),
    "a parent": (into("my model\n"), ALL, "my model\\n"),
    "a parent with a file": (both(into("sub"), write("notes.txt", "x")), WEIGHTS + " tokenizer",
                             {"tokenizer": "tokenizer", "": "sub"}),
    "an empty folder": (keep(), ALL, "folder is empty"),
    "no folder": (lambda folder: folder / "none", ALL, "none"),
    "no folder, by a name": (lambda folder: "no-such-model-anywhere", ALL, "no-such-model-anywhere"),
    "a file": (lambda folder: folder / CONFIG, ALL, CONFIG),
    "a name of 300 letters": (lambda folder: folder / ("x" * 300), ALL, "xxx"),
    "a name with a zero": (lambda folder: f"{folder}/a\0b", ALL, ""),
    "a name with half a surrogate": (lambda folder: f"{folder}/a\ud800", ALL, ""),
    "a pipe": (lambda folder: (pipe("p")(folder), folder / "p")[1], ALL, "p"),
    "a folder linked to itself": (lambda folder: (link("l", "l")(folder), folder / "l")[1], ALL, "l"),
    "a link to a folder": (lambda folder: (link("../other", folder)(folder), folder.parent / "other")[1], GOOD, ""),
    # the index
    **{f"the index: {kind}": (write(INDEX, content), WEIGHTS, INDEX) for kind, content in NO_JSON.items()},
    **{f"the index has {value!r} as weight_map": (replace(INDEX, weight_map=value), WEIGHTS, f"{INDEX} has no weight_map")
       for value in (None, {}, [], "x", 5)},
    "the index without weight_map": (write(INDEX, "{}"), WEIGHTS, f"{INDEX} has no weight_map"),
    **{f"the index names {kind}": (place("model.norm.weight", name), WEIGHTS, f"{INDEX} names")
       for kind, name in NO_SHARD.items()},
    "the index names a file of 300 letters": (place("x", "x" * 300 + ".safetensors"), WEIGHTS, "xxx.safetensors"),
    "the index names half a surrogate": (place("x", "\ud800.safetensors"), WEIGHTS, "\\ud800.safetensors"),
    "the index names a newline": (place("x", "a\nb.safetensors"), WEIGHTS, "a\\nb.safetensors is missing"),
    **{f"the index has {value!r} as metadata": (replace(INDEX, metadata=value), WEIGHTS, INDEX)
       for value in (None, [], "x", 5)},
    **{f"the index's {total} is {kind}": (edit(INDEX, metadata={total: value}), WEIGHTS, f"as {total}, which is not a count")
       for kind, value in NO_COUNT.items() for total in ("total_size", "total_parameters")},
    "the index's total_size is another": (edit(INDEX, metadata={"total_size": 5}), "check", "bytes 5 107,648"),
    "the index's total_parameters is another": (edit(INDEX, metadata={"total_parameters": 5}), "check", "parameters 5 26,912"),
    "the index's total has 4,000 digits": (edit(INDEX, metadata={"total_size": 10**4000}), "check", "107,648"),
    "the index a pipe": (pipe(INDEX), WEIGHTS, f"{INDEX} is a pipe"),
    "the index a folder": (directory(INDEX), WEIGHTS, f"{INDEX} is a folder"),
    "the index a link to nothing": (link(INDEX, "nothing"), WEIGHTS, f"{INDEX} is missing"),
    "the index a link to itself": (link(INDEX, INDEX), WEIGHTS, INDEX),
    "the index a device": (link(INDEX, "/dev/zero"), WEIGHTS, f"{INDEX} is a pipe or a device"),
    "the index of 200 MB": (lambda folder: os.truncate(folder / INDEX, 200_000_000), WEIGHTS, f"{INDEX} is 200,000,000"),
    # config.json
    **{f"config.json: {kind}": (write(CONFIG, content), "list read check load tokenizer", f"{CONFIG} ")
       for kind, content in NO_JSON.items()},
    "config.json missing": (remove(CONFIG), "fetch check load", {"check": "no config.json", "": f"{CONFIG} is missing"}),
    "config.json an empty object": (write(CONFIG, "{}"), "check load", CONFIG),
    "config.json a pipe": (pipe(CONFIG), ALL, CONFIG),
    "config.json a folder": (directory(CONFIG), ALL, CONFIG),
    "config.json a link to nothing": (link(CONFIG, "nothing"), ALL, CONFIG),
    "config.json a link to itself": (link(CONFIG, CONFIG), ALL, CONFIG),
    "config.json a device": (link(CONFIG, "/dev/zero"), ALL, CONFIG),
    "config.json without model_type": (
        lambda folder: write(CONFIG, json.dumps({"hidden_size": 32}))(folder), "check load", "model_type",
    ),
    "config.json with labels without end": (config(num_labels=10**9), "check load tokenizer", "num_labels"),
    "config.json with nested labels without end": (
        config(model_type="gemma3", text_config={"num_labels": 10**9}), "check load tokenizer", "num_labels",
    ),
    "config.json with positions without end": (both(gptj, config(n_positions=10**9)), "check load tokenizer", CONFIG),
    "config.json of a larger model": (config(intermediate_size=96), "check load", {"check": "33,056 26,912", "": CONFIG}),
    "config.json of a smaller model": (config(num_hidden_layers=1), "check load", ""),
    "config.json of a model without a head": (config(tie_word_embeddings=False), "check load", ""),
    "a method that is not known": (
        config(quantization_config={"quant_method": "x\n"}), "list read check load", "method x\\n is not known",
    ),
    # the tokenizer and the rest
    **{f"{TOKENIZER}: {kind}": (write(TOKENIZER, content), "load tokenizer", TOKENIZER) for kind, content in NO_JSON.items()},
    **{f"{SETTINGS}: {kind}": (write(SETTINGS, content), "load tokenizer", SETTINGS) for kind, content in NO_JSON.items()},
    "tokenizer.json missing": (remove(TOKENIZER), "fetch load tokenizer", "tokenizer"),
    "tokenizer.json of nothing": (write(TOKENIZER, "{}"), "load tokenizer", "tokenizer"),
    "tokenizer.json with a wrong model": (replace(TOKENIZER, model={"type": "BPE"}), "load tokenizer", "tokenizer"),
    "tokenizer.json a pipe": (pipe(TOKENIZER), "fetch load tokenizer", "tokenizer"),
    "tokenizer.json a folder": (directory(TOKENIZER), "fetch load tokenizer", "tokenizer"),
    "tokenizer.json a device": (link(TOKENIZER, "/dev/zero"), "fetch load tokenizer", "tokenizer"),
    "tokenizer.json of 200 MB": (lambda folder: os.truncate(folder / TOKENIZER, 200_000_000), "load tokenizer", TOKENIZER),
    "tokenizer_config.json a pipe": (pipe(SETTINGS), "load tokenizer", SETTINGS),
    **{f"model_max_length {value!r}": (replace(SETTINGS, model_max_length=value), "tokenizer load?", "")
       for value in ("x", [], {}, float("nan"))},
    **{f"chat_template {value!r}": (replace(SETTINGS, chat_template=value), "load tokenizer", "template")
       for value in (True, 5)},
    "a template that loops": (
        write(TEMPLATE, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"), "load", "too long",
    ),
    "a template that eats memory": (write(TEMPLATE, "{{ 'x' * 10**11 }}"), "load", "MemoryError"),
    "a template that grows": (
        write(TEMPLATE, "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"),
        "load", "template",
    ),
    "a template that is no template": (write(TEMPLATE, "{% for %}"), "load", "TemplateSyntaxError"),
    "a template that reaches out": (write(TEMPLATE, "{{ ''.__class__.__mro__ }}"), "load", "SecurityError"),
    "a template that reads files": (write(TEMPLATE, "{% include '/etc/passwd' %}"), "load", "template"),
    "a template that refuses": (write(TEMPLATE, "{{ raise_exception('first\\nsecond') }}"), "load", "template"),
    **{f"{name}: {kind}": (write(name, content), None, "")
       for name in (GENERATION, "special_tokens_map.json", "added_tokens.json", "chat_template.json")
       for kind, content in NO_JSON.items() if kind in ("no JSON", "deep brackets", "a list", "not UTF-8", "zeros")},
    **{f"{name} a pipe": (pipe(name), None, "") for name in (GENERATION, TEMPLATE, "special_tokens_map.json", "vocab.json")},
    "tensor names of anything": (header({"a\nb": ("F32", (2,)), "$\\frac": ("F32", (2,)), "": ("F32", (2,))}), "check load", ""),
    "a layer beyond 64 bits": (header({f"layers.{10**20}.x": ("F32", (2,))}), "check load", ""),
    "code in the folder": (trap, GOOD, ""),
    "code in the folder, no type": (both(trap, config(model_type="evil")), "check load", "model_type"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Three shards, no chat template; every library that the functions import is in."""
    folder = write_toy(tmp_path_factory.mktemp("sound") / "toy", shard_size="40KB", chat=False)
    for function in FUNCTIONS.values():
        function(folder)
    return folder


@pytest.mark.parametrize("row", ROWS)
def test_a_broken_folder_is_told(row, sound, tmp_path):
    damage, by, words = ROWS[row]
    folder = shutil.copytree(sound, tmp_path / "folder")
    changed = damage(folder)
    folder = changed if isinstance(changed, str | Path) else folder
    for name, function in FUNCTIONS.items():
        returned, said = soon(function, folder)
        if by is None or f"{name}?" in by:  # it may tell, or do without
            continue
        if name in by.split():
            wanted = words if isinstance(words, str) else words.get(name, words[""])
            assert said.strip(), f"{name} says nothing"
            assert wanted in said, f"{name} says: {said}"
        else:
            assert returned, f"{name} says: {said}"
            assert name != "check" or not said.strip(), f"check says: {said}"
    assert not (tmp_path / "marker").exists(), "code of the folder was run"


@pytest.mark.parametrize("key", ABSURD)
def test_absurd_settings_are_refused_before_anything_large_is_built(key, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "folder")
    for value in ABSURD[key]:
        shutil.copy(sound / CONFIG, folder / CONFIG)
        config(**{key: value})(folder)
        for name in ("read", "list", "check", "tokenizer"):
            soon(FUNCTIONS[name], folder)
        returned, said = soon(mt.load_model, folder)
        assert not returned, f"{value!r} is taken"
        assert len(said) < 1000


@pytest.mark.parametrize("name", [CONFIG, SETTINGS, TOKENIZER, GENERATION, INDEX])
def test_no_single_value_of_a_json_file_is_a_crash(name, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "folder")
    fields = json.loads((sound / name).read_text())
    for field in [*fields, "chat_template", "extra_special_tokens", "added_tokens_decoder"]:
        for value in (None, -1, float("nan"), "x", [[]], {"a": [1]}):
            (folder / name).write_text(json.dumps(fields | {field: value}))
            for function in ("read", "check", "tokenizer") if name != GENERATION else ("load",):
                soon(FUNCTIONS[function], folder)


@pytest.mark.parametrize(
    "steering",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel"},
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": {"": "evil/kernel"}},
        {"_experts_implementation": "evil/kernel", "experts_implementation": "evil/kernel"},
        {"use_kernels": True, "kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"}},
    ],
)
def test_config_cannot_choose_what_runs(steering, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "folder")
    config(**steering)(folder)
    model, _ = mt.load_model(folder)
    assert model.config._attn_implementation == "sdpa"
    assert "evil" not in str(model.config.to_dict())
    nested = {"model_type": "gemma3_text", "num_hidden_layers": 2} | steering
    config(model_type="gemma3", text_config=nested, **steering)(folder)
    described = read_architecture(folder)
    assert described._attn_implementation is None
    assert described.text_config._attn_implementation is None
    assert "evil" not in str(described.to_dict())


@pytest.mark.parametrize("weights", [None, "other.safetensors", f"../folder/{ONE}", "../other.safetensors", "x.bin", 5])
def test_a_loaded_model_is_the_one_that_was_checked(weights, sound, tmp_path):
    import torch
    from safetensors.torch import save_file

    folder = shutil.copytree(sound, tmp_path / "folder")
    tensors = stored(folder, S1, S2, S3)
    for place in (folder, tmp_path):
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, place / "other.safetensors", {"format": "pt"})
    pickled("x.bin")(folder)
    config(**({} if weights is None else {"transformers_weights": weights}))(folder)
    try:
        model, _ = mt.load_model(folder)
    except mt.ModelError:
        assert weights is not None
    else:
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())


def test_named_templates_are_not_measured_as_one(sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "folder")
    named = [{"name": "default", "template": "x" * 70}, {"name": "tool_use", "template": "y" * 500}]
    replace(SETTINGS, chat_template=named)(folder)
    assert "70 characters" in mt.describe_tokenizer(folder).set_index("fact").at["chat template", "value"]


@contextmanager
def an_ordinary_user():
    """Root reads everything: be someone else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def readable(sound):
    """A copy that anyone can reach and read."""
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(sound, Path(place) / "folder")
        Path(place).chmod(0o755)
        for path in (folder, *folder.iterdir()):
            path.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "mode", "by", "words"),
    [
        (S2, 0, WEIGHTS, f"{S2} cannot be read: Permission denied"),
        (CONFIG, 0, "list read check load tokenizer", f"{CONFIG} cannot be read"),
        (INDEX, 0, WEIGHTS, f"{INDEX} cannot be read"),
        (TOKENIZER, 0, "load tokenizer", f"{TOKENIZER} cannot be read"),
        (SETTINGS, 0, "load tokenizer", f"{SETTINGS} cannot be read"),
        (".", 0, ALL, ""),
        (".", 0o444, ALL, ""),
        (".", 0o755, "", ""),
    ],
)
def test_what_cannot_be_read_is_told(name, mode, by, words, readable):
    (readable / name).chmod(mode)
    for function in FUNCTIONS:
        with an_ordinary_user():
            returned, said = soon(FUNCTIONS[function], readable)
        assert returned == (function not in by.split()) or function in ("check", "list")
        assert function not in by.split() or (said.strip() and words in said)


@pytest.mark.parametrize("name", ["a b", "a\nb", "<b>x", "$\\frac", "\u202eabc", "a|b`c`", "\x1b[31m"])
def test_names_are_escaped_wherever_they_are_shown(name, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / name)
    (folder / f"{name}.safetensors").write_text(LFS)
    with pytest.warns(mt.ModelWarning, match="git-lfs pointer") as told:
        files = mt.list_files(folder)
    assert f"{name}.safetensors" in list(files["file"])
    tree, table = mt.directory_tree(folder), mt.to_markdown(files)
    assert (len(tree.splitlines()), len(table.splitlines())) == (len(files) + 1, len(files) + 2)
    for text in (tree.replace("\n", ""), table.replace("\n", ""), str(told[0].message)):
        assert text.isprintable()
    assert "<b>" not in table
    assert all(line.count("|") - line.count("\\|") == 5 for line in table.splitlines())
    mt.save_chart(mt.plot_storage(files), tmp_path / "chart.png")


def test_more_files_than_a_model_can_have(sound, tmp_path, monkeypatch):
    files = len(mt.list_files(sound))
    monkeypatch.setattr("base_model.read.folder.MAX_FILES", files)
    assert len(mt.list_files(sound)) == files
    monkeypatch.setattr("base_model.read.folder.MAX_FILES", files - 1)
    with pytest.raises(mt.ModelError, match=f"more than {files - 1} files"):
        mt.list_files(sound)


def test_no_more_gaps_than_files_there_can_be():
    assert len(list(_gaps(["model-00001-of-20000.safetensors"]))) == 19_999
    assert not list(_gaps(["model-00001-of-20001.safetensors"]))


def test_a_settings_file_of_as_many_bytes_as_may_be(tmp_path, monkeypatch):
    (tmp_path / CONFIG).write_text('{"a": 1}')
    monkeypatch.setattr("base_model.read.folder.MAX_JSON_BYTES", 8)
    assert read_json(tmp_path / CONFIG) == {"a": 1}
    monkeypatch.setattr("base_model.read.folder.MAX_JSON_BYTES", 7)
    with pytest.raises(mt.ModelError, match="is 8 bytes, too large for a settings file"):
        read_json(tmp_path / CONFIG)


@pytest.mark.parametrize("name", ["x" * 5_000, "a\0b"])
def test_a_name_that_no_disk_can_hold_is_neither_folder_nor_file(name):
    assert not is_folder(Path(name)) and not is_file(Path(name))
