"""How much of anything is taken from a model's files, far above any model of today: a slip or a trap must not fill
the memory or run for hours. In bytes, items and seconds; what is beyond is refused in words."""

MAX_JSON_BYTES = 100_000_000  # the largest index in use is some 10 MB
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
MAX_FILES = 20_000  # a repository holds some hundreds; a home folder millions

MAX_DEPTH = 50  # objects and lists in one another, in config.json
MAX_ITEMS = 10_000  # of a list in config.json: one for each layer at most; settings of a quantisation may name more
MAX_NAMED = 1_000_000  # of an object in config.json, or of a list of its quantisation: one for each tensor at most
MAX_MODULES = 50_000  # of a model that is built without weights; experts that are not fused are modules
MAX_BUFFER_BYTES = 2**30  # masks and position tables; a model of today has some megabytes

# The largest number, or the most items of a list or a text, that a setting of config.json gives, by the end of its
# name. The deepest model of today has some 130 layers, models merged with themselves some 315.
SETTINGS = {
    "layers": 320, "layer": 320, "blocks": 320, "types": 320, "type": 320, "pattern": 320,
    "expand": 10_000, "rank": 10**6, "heads": 10_000, "experts": 20_000, "labels": 100_000,
    "dim": 10**6, "size": 10**7, "embeddings": 2 * 10**7, "positions": 2 * 10**7, "ctx": 2 * 10**7,
}  # fmt: skip

MAX_TOKENS = 1_000_000  # words of a vocabulary; the largest of today has 0.9 million
MAX_ADDED_TOKENS = 50_000  # each takes part in a search of its own; models of today have some hundreds
TOKENIZER_SECONDS = 5  # of the processor, to load a tokenizer.json and to read and write a page with it
TEMPLATE_SECONDS = 0.5  # of the processor, to render a conversation
CHILD_BYTES = 4 * 2**30  # address space of the process that tries them out; the libraries take their share
MAX_PROMPT_CHARACTERS = 100_000  # of a rendered conversation; more is no prompt that a person reads
