"""One step of `train()`, the trainer's own, with a planned batch for data and a ledger that sees every tensor."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from base_model import ModelError, brief
from base_model.train.arguments import Run
from base_model.train.progress import planning_bar

if TYPE_CHECKING:
    from base_model.plan.ledger import Ledger


def train(model: Any, run: Run, ledger: "Ledger") -> None:
    """One step of `train()`, with the optimizer's states there already, as in every step but the first."""
    from base_model.train.sharding import watched

    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("Nothing is trained: this adapter has no trainable parameters (inference_mode=True?).")
    _count_gradients(model, ledger)
    try:
        trainer = _trainer(model, run, ledger)
        if run.half:
            _require_scalable(model)
        with ledger, watched(ledger) if run.devices > 1 else nullcontext():
            trainer.train()
    except ModelError:
        raise
    except Exception as error:  # the model code of each architecture fails in its own way
        how = "sharded" if run.devices > 1 else "without weights"
        raise ModelError(f"This step cannot be run {how}: {_why(error)}.") from error


@contextmanager
def progress(model: Any, run: Run) -> Iterator[None]:
    """A bar over the trained parameters: in forward, where backward runs that once more, and in backward.

    Sharded ones are others by then, so their backward does not show.
    """
    count = sum(1 for parameter in model.parameters() if parameter.requires_grad)
    passes = 1 + run.args.gradient_checkpointing + (run.devices == 1)
    total = run.args.gradient_accumulation_steps * passes * count
    with planning_bar(total=total) as bar:
        _show_progress(model, bar)
        yield


def _show_progress(model: Any, bar: Any) -> None:
    """By hooks; nothing here may hold a parameter, which would stay alive when it is sharded."""
    shown: set[int] = set()
    for module in model.modules():
        trained = [one for one in module._parameters.values() if one is not None and one.requires_grad]
        trained = [one for one in trained if id(one) not in shown]  # a tied one has two modules
        if trained:
            module.register_forward_pre_hook(partial(_advance, bar, len(trained)))
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(partial(_advance, bar, 1))
            shown.add(id(parameter))


def _advance(bar: Any, count: int, *_: Any) -> None:
    """A hook gives nothing back, or torch takes it for the module's input."""
    bar.update(count)


def _why(error: Exception) -> str:
    """The library's own words; where these are only an operation's name, what it means that it failed."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"the model's code depends on values, such as which expert reads which token ({brief(error)})"
    if isinstance(error, AttributeError) and "last_hidden_state" in str(error):
        return (
            "TRL's loss needs the model's body without its head; this class offers none, so TRL cannot train it. "
            "Give TrainingArguments: transformers' Trainer takes the whole model"
        )
    return brief(error).rstrip(".")


def _count_gradients(model: Any, ledger: "Ledger") -> None:
    """Have each gradient counted once it is complete."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda one: ledger.enter(one.grad, "gradients"))


def _require_scalable(model: Any) -> None:
    """fp16 scales the loss, and torch's GradScaler takes gradients of float32 only."""
    if all(parameter.element_size() >= 4 for parameter in model.parameters() if parameter.requires_grad):
        return
    quantized = getattr(model, "is_loaded_in_4bit", None) is not None
    why = "TRL keeps the adapters of a quantised base in bfloat16" if quantized else "these weights are trained in it"
    other = "" if quantized else ', or load them in float32 (model_init_kwargs={"dtype": "float32"})'
    raise ModelError(
        f"fp16 scales the loss, torch's GradScaler refuses gradients in half precision, and {why}: take bf16{other}."
    )


def _trainer(model: Any, run: Run, ledger: "Ledger") -> Any:
    """The trainer, told of the planned batch instead of data, and of the ledger."""
    import datasets
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTTrainer

    example = {"input_ids": [1] * run.tokens, "labels": [1] * run.tokens}
    if run.trl:
        run.args.dataset_kwargs = {"skip_prepare_dataset": True}
        more: dict[str, Any] = {"processing_class": plain_tokenizer()}
    else:
        example["attention_mask"] = [1] * run.tokens
        more = {}
    kind = _planned(SFTTrainer if run.trl else Trainer, run, ledger, example)
    data = datasets.Dataset.from_list([example] * run.batch)
    trainer = kind(model=model, args=run.args, train_dataset=data, callbacks=[], **more)
    trainer.remove_callback(PrinterCallback)
    trainer.accelerator.device_placement = False  # they are where they will be
    return trainer


def _planned(kind: type, run: Run, ledger: "Ledger", example: dict[str, list[int]]) -> type:
    """The trainer's class, with the batch given and its moments told to the ledger; the rest is its own code."""
    steps = itertools.count(1)

    class Planned(kind):  # type: ignore[valid-type, misc]
        def _move_model_to_device(self, model: Any, device: Any) -> Any:
            return model

        def _prepare_inputs(self, inputs: Any) -> Any:
            return inputs

        def _send_telemetry(self) -> None:
            """Nothing is sent."""

        def get_train_dataloader(self) -> list[Any]:
            """The micro-batches that are run; the others lie on the device too, since the trainer fetches all first."""
            made = _collated(self.data_collator, example, run)
            self.all_batches = [_without_values(made) for _ in range(run.accumulation)]  # they wait on the device
            return self.all_batches[: self.args.gradient_accumulation_steps]

        def _prepare_for_training(self, *args: Any) -> Any:
            # TRL makes the adapters of a quantised base anew, in bfloat16; FSDP puts shards in the place of all.
            kinds = [ledger.kind_of(parameter) or "adapter" for parameter in self.model.parameters()]
            prepared = super()._prepare_for_training(*args)
            for parameter, kind in zip(self.model.parameters(), kinds, strict=True):
                ledger.enter(parameter, kind)
            _give_states(self.optimizer.optimizer, ledger)
            return prepared

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            """The trainer's own; the second stands for all that are left out, too."""
            left_out = run.accumulation - self.args.gradient_accumulation_steps
            ledger.times = 1 + left_out if next(steps) == 2 else 1
            with ledger.making("activations", "forward"):
                loss = super().training_step(*args, **kwargs)
            ledger.times = 1
            ledger.kind, ledger.moment = "temporary", "optimizer"
            return loss

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            """The trainer's own, after which the backward pass begins."""
            loss = super().compute_loss(*args, **kwargs)
            ledger.moment = "backward"
            return loss

    return Planned


def _collated(collate: Any, example: dict[str, list[int]], run: Run) -> dict[str, Any]:
    """One micro-batch, as the trainer's own collator makes it of texts of the planned length."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), unset_fake_temporarily():
        return collate([example | ({"seq_lengths": [run.tokens]} if run.trl else {}) for _ in range(run.batch)])


def _without_values(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch on the planned device."""
    import torch

    return {
        name: torch.empty(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _give_states(optimizer: Any, ledger: "Ledger") -> None:
    """Take one step with gradients of no value, so that the measured step finds the optimizer's states."""
    import torch

    from base_model.plan.ledger import HOST

    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with ledger.making("temporary"):
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    for tensor in tensors_of(optimizer):
        ledger.enter(tensor, HOST if ledger.kind_of(tensor) == HOST else "optimizer")
    ledger.start()


def tensors_of(optimizer: Any) -> Iterator[Any]:
    """What an optimizer keeps from step to step."""
    import torch

    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def plain_tokenizer() -> Any:
    """A tokenizer of two words: the trainer asks for one, and the planned batch needs none."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
