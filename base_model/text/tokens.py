"""A text as its tokens: a table, and a drawing of coloured pieces that reads as well without its colours."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import visible
from base_model.hub.locate import folder_of
from base_model.text.tame import SAMPLE, faults_in_words
from base_model.text.tokenizer import load_tokenizer, render_prompt, split, tokenizer_facts

MAX_DRAWN = 500  # tokens; a page of thousands of pieces is slow, and nobody reads it
# Half transparent, so that the page's own text colour reads on them, in a light theme and in a dark one.
TINTS = ("0, 114, 178", "230, 159, 0", "0, 158, 115", "204, 121, 167", "86, 180, 233")
MARKS = {" ": ("·", "space"), "\n": ("⏎", "line end"), "\t": ("⇥", "tab")}
PIECE = "display: inline-block; margin: 2px 1px; padding: 1px 4px; border-radius: 4px; text-align: center;"
LETTERS = "background: none; color: inherit; padding: 0;"
NUMBER = "display: block; font-size: 70%; line-height: 1.2;"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PART = re.compile(r"⟨[0-9A-F ]+⟩")


@dataclass(frozen=True, repr=False)
class DrawnTokens:
    """A text split into tokens: coloured pieces with their ids in a notebook (`html`), plain text elsewhere."""

    html: str
    plain: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.plain


def describe_tokenizer(model: str | Path, text: str = SAMPLE) -> pd.DataFrame:
    """Facts about the tokenizer, and what they mean for tuning; columns `fact`, `value` (text).

    The vocabulary against the embedding's rows, special tokens and their ids against generation_config.json, padding,
    the chat template, and tokens per word of `text`. Raises ModelError for a tokenizer that cannot be loaded.
    """
    return tokenizer_facts(folder_of(model, with_tokenizer=True), text)


def show_prompt(model: str | Path, text: str) -> str:
    """The text as the model gets it: in the turns of its chat template; unchanged for a base model.

    Safe to print: control characters are written as escapes. Raises ModelError for a template that does not work.
    """
    prompt = render_prompt(load_tokenizer(folder_of(model, with_tokenizer=True), text), text)
    return "\n".join(map(visible, prompt.split("\n")))


def show_tokens(model: str | Path, text: str) -> pd.DataFrame:
    """How `text` is split, one row per token: `token_id`, `token` (as in the vocabulary), `text` (what it stands for).

    A token with a part of a character shows that part's bytes: `⟨F0 9F⟩`.
    """
    return _table(load_tokenizer(folder_of(model, with_tokenizer=True), text), text)


def draw_tokens(model: str | Path, text: str) -> DrawnTokens:
    """The tokens of `text` as coloured pieces with their ids; special ones framed, white space as marks.

    At most 500 are drawn, with their number, per word and in bytes, below. `print` gives the same as plain text.
    """
    tokenizer = load_tokenizer(folder_of(model, with_tokenizer=True), text)
    table = _table(tokenizer, text)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    drawn = table.head(MAX_DRAWN)
    pieces = [(_marked(piece), number, number in special) for number, _, piece in drawn.itertuples(index=False)]
    notes = [_rates(text, len(table)), *_notes(drawn, len(table))]
    return DrawnTokens(_html(pieces, notes), _plain(pieces, notes))


def _table(tokenizer: Any, text: str) -> pd.DataFrame:
    token_ids = split(tokenizer, text)
    with faults_in_words("The tokenizer cannot tell what its tokens stand for", "Download its files again"):
        tokens = tokenizer.convert_ids_to_tokens(token_ids)
        pieces = map(_piece, tokens, map(tokenizer.decode, token_ids))
        return pd.DataFrame(zip(token_ids, tokens, pieces, strict=True), columns=["token_id", "token", "text"])


def _piece(token: str, decoded: str) -> str:
    """What a token stands for; the bytes of a character that is cut across tokens as `⟨F0 9F⟩`."""
    if token.startswith("▁") and not decoded.startswith(" "):  # decoded alone, a word loses the space before it
        return f" {decoded}"
    if "\ufffd" not in decoded or (held := _bytes(token)) is None:
        return decoded
    return "".join(
        f"⟨{part.encode(errors='surrogateescape').hex(' ').upper()}⟩" if part[0] >= "\udc80" else part
        for part in re.findall("[\udc80-\udcff]+|[^\udc80-\udcff]+", held.decode(errors="surrogateescape"))
    )


def _bytes(token: str) -> bytes | None:
    """The bytes of a token that is not whole text: written `<0xF0>`, or in GPT-2's alphabet of 256 letters."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if match := _BYTE.fullmatch(token):
        return bytes.fromhex(match[1])
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(letters[letter] for letter in token) if all(letter in letters for letter in token) else None


def _rates(text: str, tokens: int) -> str:
    """How dense the tokens are: per word, and, as not every script puts spaces between them, in bytes of UTF-8."""
    words, size = len(text.split()), len(text.encode(errors="replace"))
    per_word = f" for {words:,} words: {tokens / words:.2f} tokens per word" if words > 1 else ""
    density = f"{tokens:,} tokens{per_word}, {size / max(tokens, 1):.1f} bytes per token."
    return density if tokens else "No tokens: an empty text."


def _notes(drawn: pd.DataFrame, tokens: int) -> Iterator[str]:
    """What the marks mean, those that occur, and what is left out."""
    joined = "".join(drawn["text"])
    used = [f"{mark} {name}" for character, (mark, name) in MARKS.items() if character in joined]
    if used:
        yield f"{', '.join(used)}."
    if _PART.search(joined):
        yield "⟨F0 9F⟩: bytes of a character that is cut across tokens."
    if tokens > len(drawn):
        yield f"The first {len(drawn):,} tokens are drawn; {tokens - len(drawn):,} more are left out."


def _marked(piece: str) -> str:
    """A piece with its white space made visible, and whatever cannot be printed as an escape."""
    return "".join(MARKS[character][0] if character in MARKS else visible(character) for character in piece)


def _html(pieces: list[tuple[str, int, bool]], notes: list[str]) -> str:
    """Inline styles only, and text that reads without them: where a site strips styles, bars part the tokens."""
    bar = '<span style="font-size: 0"> | </span>'
    spans = [_span(TINTS[position % len(TINTS)], *piece) for position, piece in enumerate(pieces)]
    text = "<br>".join(html.escape(note) for note in notes)
    return f'<div style="line-height: 1.4">{bar.join(spans)}</div><p>{text}</p>'


def _span(tint: str, piece: str, number: int, special: bool) -> str:
    """One token; what stands in `code` is never read as TeX."""
    edge = "dashed gray" if special else "solid transparent"
    style = f"{PIECE} background-color: rgba({tint}, 0.3); border: 1px {edge}"
    line_end = "<br>" if piece.endswith(MARKS["\n"][0]) else ""
    text = f'<code style="{LETTERS}">{html.escape(piece)}</code>'
    return f'<span style="{style}">{text}<sub style="{NUMBER}">{number}</sub></span>{line_end}'


def _plain(pieces: list[tuple[str, int, bool]], notes: list[str]) -> str:
    return "\n".join([" | ".join(f"{piece} ({number})" for piece, number, _ in pieces), *notes]).strip()
