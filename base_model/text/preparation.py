"""Rows to tokens as TRL's SFTTrainer prepares them: by its own functions, of which nothing is written again here.

`SFTTrainer._prepare_dataset` maps functions over a data set. Here it is given a stand-in of one row, which keeps these
functions; then they run over the rows in batches, so that the tokenizer splits many texts in one call.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from base_model import ModelError, brief, is_fault, visible
from base_model.text.tame import faults_in_words

Row = dict[str, Any]
Numbered = tuple[int, Row]
Step = Callable[[Row], Row]
BATCH = 256  # rows that are split in one call, or fewer when they are long
BATCH_CHARACTERS = 2**20
LONGEST_ROW = 16 * 2**20  # characters
IGNORED = -100  # as a label: this token does not count
# What `apply_chat_template` takes that changes how a text is split, not the text alone.
SPLITTING = {"max_length", "padding", "return_tensors", "sanitize_control_tokens", "tokenizer_kwargs", "truncation"}


class RowError(ModelError):
    """One row is at fault; which, and why."""


class OneRow:
    """A data set as TRL sees it, of one row only; it keeps what is mapped over it, as `(settings, step)`."""

    def __init__(self, row: Row) -> None:
        self.row, self.steps = row, list[tuple[Row, Step]]()

    @property
    def column_names(self) -> list[str]:
        """TRL asks again after each step."""
        return list(self.row)

    def __iter__(self) -> Iterator[Row]:
        yield dict(self.row)

    def map(self, function: Any, fn_kwargs: Row | None = None, remove_columns: Any = None, **_: Any) -> "OneRow":
        """Keep a step, and take it, so that TRL finds the row as it leaves it."""
        removed = {remove_columns} if isinstance(remove_columns, str) else set(remove_columns or ())
        step = partial(_apply, partial(function, **fn_kwargs or {}), removed)
        self.steps.append((fn_kwargs or {}, step))
        self.row = step(self.row)
        return self


def _apply(function: Any, removed: set[str], row: Row) -> Row:
    """What `Dataset.map` does with one row."""
    made = row | function(row)
    return {name: value for name, value in made.items() if name not in removed}


class Batched:
    """The tokenizer as TRL's functions ask it, twice: once to note the texts, once for the tokens of each."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.asked: list[Any] | None = None  # None: answer at once
        self.answers: Iterator[Any] = iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str) -> Any:
        """The tokens of plain text, special tokens added."""
        return self._answer(lambda: (text, True), lambda: self.tokenizer(text=text))

    def apply_chat_template(self, messages: Any, tokenize: bool, return_dict: bool, **settings: Any) -> Any:
        """The tokens of a conversation; where more than its text is asked for, by the tokenizer itself."""
        ask = self.tokenizer.apply_chat_template
        now = partial(ask, messages, tokenize=tokenize, return_dict=return_dict, **settings)
        if settings.get("return_assistant_tokens_mask") or settings.keys() & SPLITTING:
            return self._answer(now, now)
        return self._answer(lambda: (ask(messages, tokenize=False, **settings), False), now)

    def _answer(self, note: Any, now: Any) -> Any:
        if self.asked is None:
            return next(self.answers, None) or now()
        self.asked.append(note())
        return {"input_ids": [], "assistant_masks": [1]}

    def split(self) -> None:
        """The noted texts to tokens, in one call; from here on they are handed out in the order of the questions."""
        asked, answers = self.asked or [], dict[int, Any]()
        for special in (True, False):
            places = [place for place, one in enumerate(asked) if isinstance(one, tuple) and one[1] is special]
            texts = [asked[place][0] for place in places]
            options = {"add_special_tokens": special, "return_attention_mask": False, "verbose": False}
            ids = self.tokenizer(texts, **options)["input_ids"] if texts else []
            answers |= {place: {"input_ids": each} for place, each in zip(places, ids, strict=True)}
        self.asked = None
        self.answers = iter([answers.get(place, one) for place, one in enumerate(asked)])


@dataclass(frozen=True)
class Recipe:
    """What TRL does to the rows of one data set: first, to split them, and which columns mask the loss."""

    first: list[Step]
    split: Step  # to tokens; where the data set holds tokens already, nothing
    masks: list[str]
    tokenizer: Batched


def recipe_for(first: Numbered, tokenizer: Any, completion_only: bool | None, assistant_only: bool) -> Recipe:
    """TRL's steps for a data set with this first row; the two settings are those of `SFTConfig`.

    Raises ModelError for a row that TRL refuses, or a template that marks no answers where only they count.
    """
    require_sound(*first)
    template = _training_template(tokenizer) if assistant_only else None
    try:
        return _recipe(first[1], tokenizer, template, completion_only, assistant_only)
    except BaseException as error:  # a template raises whatever it likes
        if not is_fault(error):
            raise
        raise _refusal(first[0], error) from error


def _recipe(row: Row, tokenizer: Any, template: str | None, completion_only: bool | None, assistant_only: bool) -> Any:
    from trl import SFTConfig, SFTTrainer

    batched, data = Batched(tokenizer), OneRow(row)
    trainer: Any = SFTTrainer.__new__(SFTTrainer)  # no model is needed to prepare a data set
    trainer._tokenizer = tokenizer
    trainer.chat_template = template
    trainer.completion_only_loss = (
        row.keys() >= {"prompt", "completion"} if completion_only is None else completion_only
    )
    config = SFTConfig(
        max_length=None, assistant_only_loss=assistant_only, use_cpu=True, bf16=False, report_to=[], output_dir="unused"
    )
    trainer._prepare_dataset(data, batched, config, packing=False, formatting_func=None, dataset_name="train")
    splits = [place for place, (settings, _) in enumerate(data.steps) if "processing_class" in settings]
    masks = next((settings["mask_columns"] for settings, _ in data.steps if "mask_columns" in settings), ["labels"])
    steps = [step for _, step in data.steps]
    return Recipe(steps[: splits[0]], steps[splits[0]], masks, batched) if splits else Recipe([], dict, masks, batched)


def _training_template(tokenizer: Any) -> str | None:
    """The template that marks what the assistant says: None where the tokenizer's own does, else TRL's of its kind."""
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if tokenizer.chat_template is None or has_generation_markers(tokenizer.chat_template):
        return None
    try:
        return get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ModelError(
            "The chat template marks no answers ({% generation %}), and TRL has no version of it that does: "
            "assistant_only_loss cannot be used. Give prompt and completion, whose answers are known."
        ) from error


def batches(rows: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """Numbered rows by the hundred, or fewer when they are long. Raises ModelError for one that is not an example."""
    batch, size = list[Numbered](), 0
    for number, row in rows:
        require_sound(number, row)
        batch.append((number, row))
        size += len(str(row))
        if len(batch) == BATCH or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def prepare(recipe: Recipe, rows: Iterable[Numbered], at: Callable[[int], Any] = int) -> Iterator[Row]:
    """The rows with `input_ids` and the columns that mask the loss; `at` is told each row's number before its turn.

    Raises ModelError, which names the row.
    """
    ready = list[Numbered]()
    recipe.tokenizer.asked = []
    for number, row in rows:
        at(number)
        ready.append((number, _taken(recipe.first, number, row)))
        _taken([recipe.split], *ready[-1])  # to note what TRL asks the tokenizer
    with faults_in_words("The tokenizer cannot split these rows", "Download its files again"):
        recipe.tokenizer.split()
    for number, row in ready:
        yield _taken([recipe.split], number, row)


def trained_in(recipe: Recipe, row: Row) -> Any:
    """Which of a prepared row's tokens count in the loss, as TRL's labels say: an array of True and False."""
    import numpy as np

    trained = np.ones(len(row["input_ids"]), bool)
    for column in recipe.masks:
        values = np.asarray(row[column])
        trained &= values != IGNORED if column == "labels" else values.astype(bool)
    return trained


def _taken(steps: list[Step], number: int, row: Row) -> Row:
    try:
        for step in steps:
            row = step(row)
    except BaseException as error:  # a template raises whatever it likes
        if not is_fault(error):
            raise
        raise _refusal(number, error) from error
    return row


def _refusal(number: int, error: BaseException) -> RowError:
    return RowError(f"row {number:,} (counted from 0): {_in_words(error)}")


def _in_words(error: BaseException) -> str:
    """Why TRL or the chat template refuses a row, and what to do."""
    from jinja2 import TemplateError

    if isinstance(error, TemplateError):
        return f"the chat template refuses it: {brief(error)}. Correct its roles or its contents."
    if "chat_template is not set" in str(error):
        return "it is a conversation, and the tokenizer has no chat template. Give an instruct model, or plain text."
    return f"TRL cannot prepare it: {brief(error)}. Correct it."


def require_sound(number: int, row: Row) -> None:
    """Stop at a row that TRL would stumble over without naming it. Raises ModelError."""
    if fault := _fault_of(row):
        raise RowError(f"row {number:,} (counted from 0): {fault}")


def _fault_of(row: Row) -> str | None:
    if len(str(row)) > LONGEST_ROW:
        return f"it is longer than {LONGEST_ROW:,} characters, and no model reads that at once. Split it."
    if "chat_template" in (row.get("chat_template_kwargs") or {}):
        return "it brings a chat template of its own, which is not run. Remove it."
    for column in ("text", "prompt", "completion", "messages", "conversations"):
        if column in row and (fault := _fault_of_value(row[column], column)):
            return f"`{column}` {fault}"
    return None


def _fault_of_value(value: Any, column: str) -> str | None:
    if isinstance(value, str) and column in ("text", "prompt", "completion"):
        return None
    if value is None:
        return "is empty (null). Remove the row, or fill it in."
    if not isinstance(value, list) and column in ("messages", "conversations"):
        return f"is not a list: {visible(repr(value))[:60]}. Write it as a list of messages."
    if not isinstance(value, list) or column == "text":
        return f"is not text: {visible(repr(value))[:60]}. Write it as text, in quotes."
    if not value:
        return "is a conversation without a message. Remove the row."
    return next(filter(None, map(_fault_of_message, value)), None)


def _fault_of_message(message: Any) -> str | None:
    """A message has a role and says something, or calls a tool."""
    if not isinstance(message, dict) or not message.keys() & {"role", "from"}:
        return f"holds a message without a role: {visible(repr(message))[:60]}. Give each `role` and `content`."
    said = message.get("content", message.get("value"))
    if isinstance(said, str | list) or (said is None and message.get("tool_calls")):
        return None
    return f"holds a message whose content is not text: {visible(repr(said))[:60]}. Write it as text."
