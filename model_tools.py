"""Look at a base language model before fine-tuning it: files, headers, tokenizer, charts, and a first run.

Everything a reader needs is here: `import model_tools as mt`. `model` is always a local folder or a Hub id
("org/name"); a folder that exists wins. Reading, drawing and running live in the rooms of `base_model/`;
this module joins them. Importing it loads neither torch nor transformers nor matplotlib.
"""

from base_model import ModelError, ModelWarning, format_bytes, format_count
from base_model.by_name import (
    attempt,
    check_model,
    compare_models,
    directory_tree,
    list_files,
    list_tensors,
    open_data,
    read_tensors,
    run_both,
    run_folder,
    write_report,
)
from base_model.hub.download import remove_leftovers
from base_model.hub.fetch import fetch_model, hub_facts, open_model
from base_model.plan.inference import kv_cache_bytes
from base_model.plan.machine import this_machine
from base_model.plan.speed import memory_bandwidth
from base_model.read.tensors import group_parameters
from base_model.run.agreement import agreement, check_runs
from base_model.run.base_loss import base_loss
from base_model.run.generation import generate_manually, generate_with_pipeline
from base_model.run.limits import limits_in_words, speed_limit
from base_model.run.loading import available_devices, load_model
from base_model.run.served import generate_served
from base_model.run.timing import Generation
from base_model.show.answer_charts import plot_gpus, plot_recommendation
from base_model.show.charts import plot_components, plot_layers, plot_models, plot_parameters, plot_storage, save_chart
from base_model.show.data_charts import plot_lengths
from base_model.show.plan_charts import plot_adapters, plot_insertion, plot_ladder, plot_memory, plot_training
from base_model.show.report import read_report
from base_model.show.run_charts import plot_limits, plot_runs
from base_model.show.sentences import best_rows, in_words
from base_model.show.words import (
    compare_runs,
    markdown_table,
    readable,
    run_conditions,
    show,
    takeaways,
    this_run,
    to_markdown,
)
from base_model.text.data import example_data
from base_model.text.data_facts import describe_data
from base_model.text.lengths import text_lengths
from base_model.text.tokens import describe_tokenizer, draw_tokens, show_prompt, show_tokens
from base_model.train.gpus import gpus
from base_model.train.planning import (
    compare_gpus,
    compare_training,
    default_adapters,
    insertion_points,
    plan_adapters,
    plan_inference,
    plan_time,
    plan_trainer,
    plan_training,
    recommend,
    settings,
    skeleton,
    training_ladder,
    try_training,
    write_script,
)
from base_model.train.published import check_plans

__all__ = [
    "Generation", "ModelError", "ModelWarning", "agreement", "attempt", "available_devices", "base_loss",
    "best_rows", "check_model", "check_plans", "check_runs", "compare_gpus", "compare_models", "compare_runs",
    "compare_training", "default_adapters", "describe_data", "describe_tokenizer", "directory_tree", "draw_tokens",
    "example_data", "fetch_model", "format_bytes", "format_count", "generate_manually", "generate_served",
    "generate_with_pipeline", "gpus", "group_parameters", "hub_facts", "in_words", "insertion_points",
    "kv_cache_bytes", "limits_in_words", "list_files", "list_tensors", "load_model", "markdown_table",
    "memory_bandwidth", "open_data", "open_model", "plan_adapters", "plan_inference", "plan_time", "plan_trainer",
    "plan_training", "plot_adapters", "plot_components", "plot_gpus", "plot_insertion", "plot_ladder",
    "plot_layers", "plot_lengths", "plot_limits", "plot_memory", "plot_models", "plot_parameters",
    "plot_recommendation", "plot_runs", "plot_storage", "plot_training", "read_report", "read_tensors", "readable",
    "recommend", "remove_leftovers", "run_both", "run_conditions", "run_folder", "save_chart", "settings", "show",
    "show_prompt", "show_tokens", "skeleton", "speed_limit", "takeaways", "text_lengths", "this_machine",
    "this_run", "to_markdown", "training_ladder", "try_training", "write_report", "write_script",
]  # fmt: skip

if __name__ == "__main__":
    from base_model.commands import main

    main()
