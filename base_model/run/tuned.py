"""What tuning has changed: the answers of the tuned model next to those of the base model."""

from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, brief
from base_model.run.generation import generate_manually
from base_model.run.loading import load_model, release_memory


def answers(folder: Path, tuned: Path, prompts: list[str], max_new_tokens: int = 40) -> pd.DataFrame:
    """One row per prompt: `prompt`, `base`, `tuned`; greedy, on the CPU.

    `tuned` is an adapter, which PEFT loads over the base model, or the folder of a whole model. Raises ModelError.
    """
    model, tokenizer = load_model(folder)
    base = [generate_manually(model, tokenizer, prompt, max_new_tokens, runs=1).text for prompt in prompts]
    if (tuned / "adapter_config.json").is_file():
        model = with_adapter(model, tuned)
    else:
        del model
        release_memory()
        model, tokenizer = load_model(tuned)
    after = [generate_manually(model, tokenizer, prompt, max_new_tokens, runs=1).text for prompt in prompts]
    return pd.DataFrame({"prompt": prompts, "base": base, "tuned": after})


def with_adapter(model: Any, adapter: Path) -> Any:
    """The model with an adapter from this disk in its layers, by PEFT. Raises ModelError."""
    import warnings

    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers
            return PeftModel.from_pretrained(model, adapter).eval()
    except Exception as error:  # a file that is broken, or of another model
        raise ModelError(f"PEFT cannot load the adapter {adapter}: {brief(error)}. Train it again.") from error
