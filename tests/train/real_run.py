"""A real SFTTrainer on the CPU, and what one of its later steps allocates, by the profiler's allocator events."""

from pathlib import Path


def added_by_a_step(folder: Path, arguments: dict, adapter=None, tokens: int = 64, trainer: str = "trl") -> int:
    """The most bytes that the third step of a real run holds beyond what was there when it began."""
    import datasets
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
                self.profile.__enter__()

        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                self.profile.__exit__(None, None, None)

    load = arguments.get("model_init_kwargs") or {}
    model = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": "auto", **load})
    model.config.pad_token_id = None
    common = {"output_dir": str(folder / "out"), "use_cpu": True, "max_steps": 3, "report_to": [], "disable_tqdm": True}
    common |= {"save_strategy": "no", "logging_strategy": "no"}
    given = {name: value for name, value in arguments.items() if name != "model_init_kwargs"}
    micro = given.get("per_device_train_batch_size", 8) * given.get("gradient_accumulation_steps", 1)
    row = {"input_ids": [5] * tokens, "labels": [5] * tokens}
    if trainer == "trl":
        args = SFTConfig(**common, **given, dataset_kwargs={"skip_prepare_dataset": True})
        made = SFTTrainer(
            model,
            args,
            train_dataset=datasets.Dataset.from_list([row] * micro * 3),
            peft_config=adapter,
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
    else:
        import peft

        model = peft.get_peft_model(model, adapter) if adapter is not None else model
        rows = [row | {"attention_mask": [1] * tokens}] * micro * 3
        made = Trainer(model, TrainingArguments(**common, **given), train_dataset=datasets.Dataset.from_list(rows))
    watch = Watch()
    made.add_callback(watch)
    torch.manual_seed(0)
    made.train()
    events = [event for event in watch.profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
