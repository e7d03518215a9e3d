"""Model folders for the tests: sparse replicas with true headers, and a toy Llama with 27 thousand real weights."""

import json
import struct
from functools import cache
from math import prod
from pathlib import Path

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I32": 4, "F8_E4M3": 1}

# The published architecture of Llama-3.2-3B-Instruct.
LLAMA_3B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 24,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}

LLAMA_1B = LLAMA_3B | {
    "head_dim": 64,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
}

# Published sizes of the 3B model's small files, in bytes (20.46 KiB, 16.41 MiB and 49.34 KiB to two decimals).
LLAMA_3B_SIZES = {
    "config.json": 866,
    "generation_config.json": 184,
    "special_tokens_map.json": 296,
    "tokenizer.json": 17_209_920,
    "tokenizer_config.json": 50_523,
}


def write_tensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A sparse safetensors file: a true header for `{name: (dtype, shape)}`, then nothing but length."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data to 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@cache
def parameter_shapes(config: str) -> dict[str, tuple[int, ...]]:
    """The parameters of a config (as JSON), by transformers' own model code on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = json.loads(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def write_replica(folder: Path, config: dict, dtype: str, max_shard_size: str) -> None:
    """A sparse checkpoint as `save_pretrained(max_shard_size=...)` would lay it out, with its index and config."""
    from huggingface_hub import split_state_dict_into_shards_factory

    shapes = parameter_shapes(json.dumps(config))
    split = split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: prod(shape) * DTYPE_BYTES[dtype],
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, {name: (dtype, shapes[name]) for name in sorted(names)})
    total_parameters = sum(map(prod, shapes.values()))
    metadata = {"total_parameters": total_parameters, "total_size": total_parameters * DTYPE_BYTES[dtype]}
    index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / "config.json").write_text(json.dumps(config))


def write_llama_3b(folder: Path) -> Path:
    """The default model in the F32 `save_pretrained` layout: every header fact exact, no weights, a few KB on disk."""
    write_replica(folder, LLAMA_3B, "F32", "5GB")
    for name, size in LLAMA_3B_SIZES.items():
        path = folder / name
        text = path.read_text() if path.exists() else "{}"
        path.write_text(text.ljust(size))
    return folder


def write_llama_1b(folder: Path) -> Path:
    """The smaller model beside it, stored as on the Hub: one file of bfloat16."""
    write_replica(folder, LLAMA_1B, "BF16", "50GB")
    return folder


def write_toy(
    folder: Path, shard_size: str = "50GB", chat: bool = True, tied: bool = True, dtype: str = "float32"
) -> Path:
    """A Llama of 27 thousand random weights and a byte-level tokenizer, as `save_pretrained` writes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=256,
        eos_token_id=257,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard_size)
    toy_tokenizer(chat).save_pretrained(folder)
    return folder


def toy_tokenizer(chat: bool):
    """One token per byte, and four special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    if chat:
        fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    return fast
