"""The summary of every file, the tree, the Markdown table."""

import pytest

import model_tools as mt

LLAMA_3B_TABLE = """\
| file | size | parameters | description |
|---|---|---|---|
| config.json | 866 B | – | Model architecture definition |
| generation_config.json | 184 B | – | Default generation settings |
| model-00001-of-00003.safetensors | 4.66 GiB | 1,249,689,600 (~1.250 B) | Model weight shard |
| model-00002-of-00003.safetensors | 4.59 GiB | 1,233,199,104 (~1.233 B) | Model weight shard |
| model-00003-of-00003.safetensors | 2.72 GiB | 729,861,120 (~0.730 B) | Model weight shard |
| model.safetensors.index.json | 20.46 KiB | – | Index mapping tensors to shards |
| special_tokens_map.json | 296 B | – | Special token definitions |
| tokenizer.json | 16.41 MiB | – | Core tokenizer vocabulary and merge rules |
| tokenizer_config.json | 49.34 KiB | – | Tokenizer configuration |"""


def test_the_default_models_table_to_the_digit(llama_3b):
    assert mt.to_markdown(mt.list_files(llama_3b)) == LLAMA_3B_TABLE


def test_list_files_columns_and_types(toy):
    files = mt.list_files(toy)
    assert list(files.columns) == ["file", "size", "parameters", "description"]
    assert files["file"].is_monotonic_increasing
    assert str(files["parameters"].dtype) == "Int64"
    assert files.set_index("file").at["config.json", "size"] == (toy / "config.json").stat().st_size
    assert files["parameters"].isna().sum() == len(files) - 3


def test_files_in_folders_are_listed_and_hidden_ones_are_not(tmp_path):
    for name in ("config.json", "original/params.json", ".gitignore", "._config.json", ".cache/huggingface/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert list(mt.list_files(tmp_path)["file"]) == ["config.json", "original/params.json"]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("model.safetensors", "Model weights"),
        ("model-00001-of-00191.safetensors", "shard"),
        ("model.fp16.safetensors", "variant"),
        ("adapter_model.safetensors", "Adapter"),
        ("original/consolidated.00.pth", "Original"),
        ("consolidated.safetensors", "own layout"),
        ("tokenizer.model", "SentencePiece"),
        ("tokenizer.model.v3", "SentencePiece"),
        ("vocab.json", "vocabulary"),
        ("merges.txt", "merge"),
        ("added_tokens.json", "added"),
        ("chat_template.jinja", "Chat template"),
        ("chat_template.json", "Chat template"),
        ("preprocessor_config.json", "processor"),
        ("README.md", "Model card"),
        ("LICENSE.txt", "Licence"),
        ("USE_POLICY.md", "policy"),
        ("pytorch_model-00001-of-00002.bin", "pickle"),
        ("model.Q4_K_M.gguf", "GGUF"),
        ("onnx/model_fp16.onnx", "ONNX"),
        ("modeling_custom.py", "never run"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("what-is-this.xyz", "Other file"),
    ],
)
def test_descriptions(tmp_path, name, word):
    from base_model.read.descriptions import describe_file

    assert word.lower() in describe_file(name).lower()


def test_the_tree_shows_folders_and_sums(tmp_path):
    (tmp_path / "original").mkdir()
    (tmp_path / "config.json").write_bytes(b"x" * 10)
    (tmp_path / "original/a").write_bytes(b"x" * 1000)
    (tmp_path / "original/b").write_bytes(b"x" * 24)
    assert mt.directory_tree(tmp_path).splitlines() == [
        f"{tmp_path.name}/  1.01 KiB",
        "├── config.json  10 B",
        "└── original/  1.00 KiB",
        "    ├── a  1,000 B",
        "    └── b  24 B",
    ]


def test_names_cannot_break_the_markdown_table(tmp_path):
    (tmp_path / "a|b<i>`\n*.txt").write_text("")
    lines = mt.to_markdown(mt.list_files(tmp_path)).splitlines()
    assert lines[2] == "| a\\|b&lt;i>\\`\\\\n\\*.txt | 0 B | – | Text file |"


def test_an_empty_or_absent_folder_is_told(tmp_path):
    (tmp_path / ".gitignore").write_text("*")
    with pytest.raises(mt.ModelError, match="folder is empty"):
        mt.list_files(tmp_path)
    with pytest.raises(mt.ModelError, match="no folder"):
        mt.list_files(tmp_path / "absent")
