"""What the files of a model repository are for, and the folder as a tree."""

from collections.abc import Iterator
from fnmatch import fnmatch

from base_model import format_bytes, visible

# The first pattern that a lower-case relative name matches; what is not here is an "Other file".
DESCRIPTIONS = (
    ("original/*", "Original checkpoint of the publisher (a second copy)"),
    ("onnx/*", "The model in ONNX format (a second copy)"),
    ("openvino*", "The model in OpenVINO format (a second copy)"),
    ("*coreml/*", "The model in Core ML format (a second copy)"),
    ("*.metadata", "Download record"),
    ("config.json", "Model architecture definition"),
    ("generation_config.json", "Default generation settings"),
    ("params.json", "Model architecture definition (publisher's own format)"),
    ("model.safetensors", "Model weights"),
    ("model.safetensors.index.json", "Index mapping tensors to shards"),
    ("model-*-of-*.safetensors", "Model weight shard"),
    ("model.*.safetensors", "Model weights (variant)"),
    ("consolidated*.safetensors", "Model weights in the publisher's own layout (a second copy)"),
    ("adapter_config.json", "Adapter (PEFT) configuration"),
    ("adapter_model.*", "Adapter (PEFT) weights"),
    ("*.safetensors.index.json", "Index mapping tensors to shards"),
    ("*.safetensors", "Tensors in safetensors format"),
    ("tokenizer.json", "Core tokenizer vocabulary and merge rules"),
    ("tokenizer_config.json", "Tokenizer configuration"),
    ("special_tokens_map.json", "Special token definitions"),
    ("added_tokens.json", "Tokens added to the vocabulary"),
    ("tokenizer.model*", "Tokenizer model (SentencePiece or tiktoken)"),
    ("*.tiktoken", "Tokenizer vocabulary (tiktoken)"),
    ("tekken.json", "Tokenizer vocabulary (Mistral tekken)"),
    ("spiece.model", "Tokenizer model (SentencePiece)"),
    ("sentencepiece.bpe.model", "Tokenizer model (SentencePiece)"),
    ("vocab.json", "Tokenizer vocabulary"),
    ("vocab.txt", "Tokenizer vocabulary"),
    ("merges.txt", "Tokenizer merge rules"),
    ("chat_template.*", "Chat template (conversation to prompt)"),
    ("additional_chat_templates/*", "Chat template for a special use"),
    ("preprocessor_config.json", "Input processor configuration (images, audio)"),
    ("processor_config.json", "Input processor configuration (images, audio)"),
    ("video_preprocessor_config.json", "Input processor configuration (video)"),
    ("quantize_config.json", "Quantisation settings"),
    ("recipe.yaml", "Quantisation recipe"),
    ("*.bin.index.json", "Index mapping tensors to PyTorch pickle shards"),
    ("training_args.bin", "Training settings (pickle; never opened here)"),
    ("*.bin", "PyTorch weights (pickle; never opened here)"),
    ("*.pt", "PyTorch weights (pickle; never opened here)"),
    ("*.pth", "PyTorch weights (pickle; never opened here)"),
    ("*.pkl", "Python pickle (never opened here)"),
    ("*.gguf", "Weights in GGUF format, as llama.cpp reads them"),
    ("*.h5", "TensorFlow weights"),
    ("*.msgpack", "Flax weights"),
    ("*.ot", "Rust (libtorch) weights"),
    ("*.onnx*", "The model in ONNX format (a second copy)"),
    ("*.tflite", "The model in TensorFlow Lite format (a second copy)"),
    ("readme*", "Model card"),
    ("licen[cs]e*", "Licence"),
    ("notice*", "Legal notices"),
    ("use_policy*", "Acceptable use policy"),
    ("*.py", "Python code of the model (never run here)"),
    ("*.ipynb", "Notebook"),
    ("*.md", "Documentation"),
    ("*.txt", "Text file"),
    ("*.png", "Picture"),
    ("*.jpg", "Picture"),
    ("*.jpeg", "Picture"),
    ("*.svg", "Picture"),
    ("*.pdf", "Document"),
)


def describe_file(name: str) -> str:
    """What a file is for, by its relative name: `config.json` -> `Model architecture definition`."""
    for pattern, description in DESCRIPTIONS:
        if fnmatch(name.lower(), pattern):
            return description
    return "Other file"


def tree_lines(sizes: dict[str, int], prefix: str = "") -> Iterator[str]:
    """The lines of a tree of `{relative name: bytes}`, folders with the sum of what is in them."""
    branches: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        top, _, rest = name.partition("/")
        branches.setdefault(top, {})[rest] = size
    for number, (top, below) in enumerate(sorted(branches.items()), start=1):
        last = number == len(branches)
        is_file = "" in below
        name = visible(top) if is_file else f"{visible(top)}/"
        yield f"{prefix}{'└── ' if last else '├── '}{name}  {format_bytes(sum(below.values()))}"
        if not is_file:
            yield from tree_lines(below, prefix + ("    " if last else "│   "))
