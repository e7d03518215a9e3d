"""What one training step keeps in memory: a real step, forward, backward and optimizer, on the meta device.

Nothing is computed there and nothing takes memory, but every tensor that a GPU would allocate is made and freed in the
same order. A ledger adds them up as they come and go.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import ModelError, brief, require_whole, warn
from base_model.architecture.config import has_position_table, positions_of, skeleton_of
from base_model.plan.adapters import attach
from base_model.plan.quantization import quantize, stored_tensors

if TYPE_CHECKING:
    from base_model.plan.ledger import Ledger

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "temporary")
COLUMNS = (*(f"{part}_bytes" for part in PARTS), "embedding_bytes", "peak_bytes")


def plan_training(
    config: Any, adapter: Any, tokens: int, batch: int, checkpointing: bool, quantized: bool, dtype: str | None
) -> pd.DataFrame:
    """One row, in `COLUMNS`: each part at its largest, and the peak, when most of them were alive at once."""
    ledger, embedding = measure(config, adapter, tokens, batch, checkpointing, quantized, dtype)
    if note := note_of(config, tokens):
        warn(f"Read this with the plan: {note}.")
    row = [ledger.most[part] for part in PARTS]
    return pd.DataFrame([[*row, embedding, ledger.peak]], columns=list(COLUMNS))


def note_of(config: Any, tokens: int) -> str:
    """What holds for every training plan of this architecture at this length."""
    from base_model.plan.scans import scan_note

    positions = positions_of(config)
    beyond = f"the model was made for {positions:,} tokens" if positions and tokens > positions else ""
    images = "a step on text alone: images take more" if config.get_text_config() is not config else ""
    return "; ".join(filter(None, (beyond, images, scan_note(skeleton_of(config)))))


def measure(
    config: Any,
    adapter: Any,
    tokens: int,
    batch: int,
    checkpointing: bool,
    quantized: bool,
    dtype: str | None,
    observe: Callable[..., None] | None = None,
) -> tuple["Ledger", int]:
    """The ledger of one step, and the bytes of the embedding; `observe` sees each operation. Raises ModelError."""
    require_whole("tokens", tokens, least=2)  # the first is not predicted
    require_whole("batch", batch)
    if not isinstance(quantized, bool):
        raise ModelError(f"`quantized` must be True (NF4) or False, not {quantized!r}: int8 cannot be planned.")
    if quantized and adapter is None:
        raise ModelError("Quantised weights cannot be trained themselves: give an adapter, such as LoraConfig().")
    from base_model.plan.answers import Finite
    from base_model.plan.scans import kernel_scans

    _require_positions(config, tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' remarks on training for real
        base = _prepared(config, checkpointing, quantized, dtype)
        weights, embedding = list(stored_tensors(base)), embedding_bytes(base)
        model = attach(base, adapter) if adapter is not None else base
        ledger = _opened(model, weights, observe)
        with kernel_scans(model), Finite():
            _run_step(model.train(), ledger, tokens, batch)
    return ledger, embedding


def _require_positions(config: Any, tokens: int) -> None:
    """Stop where positions are rows of a table, and this text is longer: no real step would run."""
    positions = positions_of(config)
    if positions and tokens > positions and has_position_table(skeleton_of(config), positions):
        raise ModelError(f"This model has positions for {positions:,} tokens. Use at most that many.")


def _prepared(config: Any, checkpointing: bool, quantized: bool, dtype: str | None) -> Any:
    """The base model as a training script sets it up, by the libraries' own functions."""
    from base_model.plan.attention import use_efficient_attention

    model = skeleton_of(config, dtype)
    use_efficient_attention(model)
    if quantized:
        quantize(model, "nf4")
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if checkpointing:
        try:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        except (ValueError, NotImplementedError) as error:  # as transformers refuses it for some architectures
            raise ModelError(f"Take checkpointing=False: {brief(error)}") from error
    return model


def _run_step(model: Any, ledger: "Ledger", tokens: int, batch: int) -> None:
    """One step with AdamW, whose state is there already, as in every step but the first."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ModelError("Nothing is trained: this adapter has no trainable parameters (inference_mode=True?).")
    optimizer = torch.optim.AdamW(trained, foreach=True)  # what torch does on a GPU unless told otherwise
    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    try:
        with ledger:
            _update(optimizer, ledger)
            ledger.start()
            output = model(input_ids=ids, labels=ids, use_cache=False)
            output.loss.backward()  # `output`, and with it the logits, stays alive, as in most training loops
            _update(optimizer, ledger)
    except Exception as error:  # the model code of each architecture fails in its own way
        raise ModelError(
            f"A training step of this architecture cannot be measured without weights: {brief(error)}."
        ) from error


def _update(optimizer: Any, ledger: "Ledger") -> None:
    """The optimizer's part of a step; what it keeps afterwards is its state, the rest was temporary."""
    ledger.kind = "temporary"
    optimizer.step()
    for tensor in (value for state in optimizer.state.values() for value in state.values()):
        ledger.enter(tensor, "optimizer")
    ledger.kind = "activations"
    optimizer.zero_grad()


def _opened(model: Any, weights: list[Any], observe: Callable[..., None] | None) -> "Ledger":
    """A ledger with the base model's `weights` in it, the rest as adapter, and every gradient once it is complete."""
    from base_model.plan.ledger import Ledger

    ledger = Ledger(model.config.get_text_config().vocab_size, observe=observe)
    base = {id(tensor) for tensor in weights}
    for tensor in stored_tensors(model):
        ledger.enter(tensor, "weights" if id(tensor) in base else "adapter")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda one: ledger.enter(one.grad, "gradients"))
    return ledger


def embedding_bytes(model: Any) -> int:
    """Of the weights on this device, the embedding and the output head, once where they are tied."""
    from base_model.plan.ledger import local

    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return sum({id(end.weight): local(end.weight).nbytes for end in ends if end is not None}.values())
