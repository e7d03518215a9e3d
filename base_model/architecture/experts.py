"""Mixtures of experts: the parameters that one token uses, by the architecture's own code."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from base_model import ModelError
from base_model.architecture.config import count_parameters, skeleton_of, text_config_of

# The settings by which transformers' architectures call them.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")


def experts_of(config: Any) -> tuple[int, int] | None:
    """The experts of a layer, and how many of them read a token; None for a model without.

    Raises ModelError if config.json does not say how many a token uses.
    """
    found = _setting(config, EXPERTS)
    if found is None or found[2] < 2:
        return None
    chosen = _setting(config, CHOSEN)
    if chosen is None:
        raise ModelError(f"config.json does not say how many of the {found[2]:,} experts each token uses.")
    return found[2], min(chosen[2], found[2])


def active_parameters(config: Any) -> int:
    """The parameters that one token uses: all of them, but for the experts that it is not sent to.

    The embedding counts in full, as in the published figures of most models; OpenAI's leave it out.
    """
    skeleton, experts = skeleton_of(config), experts_of(config)
    total = count_parameters(skeleton)
    if experts is None or experts[0] == experts[1]:
        return total
    return total - _idle(skeleton, skeleton_of(_with_only(config, experts[1])), experts[0] - experts[1])


def _settings(config: Any) -> Iterator[Any]:
    """The config of the text model, and those within it."""
    from transformers import PreTrainedConfig

    text = text_config_of(config)
    if text is not None:
        yield from (text, *(part for part in vars(text).values() if isinstance(part, PreTrainedConfig)))


def _setting(config: Any, names: tuple[str, ...]) -> tuple[Any, str, int] | None:
    """Where the first of these settings is that gives a whole number: `(config, name, number)`."""
    for part in _settings(config):
        for name in names:
            if type(number := getattr(part, name, None)) is int and number > 0:
                return part, name, number
    return None


def _with_only(config: Any, chosen: int) -> Any:
    """The same architecture with no more experts than read a token."""
    fewer = deepcopy(config)
    if found := _setting(fewer, EXPERTS):
        setattr(found[0], found[1], chosen)
    return fewer


def _idle(skeleton: Any, fewer: Any, missing: int) -> int:
    """The parameters that the model of fewer experts lacks, without the routers, which score all experts."""
    left = {name: tuple(one.shape) for name, one in fewer.named_parameters()}
    lacking: dict[str, int] = {}
    routers: dict[str, bool] = {}
    for name, one in skeleton.named_parameters():
        shape, module = left.get(name), name.rpartition(".")[0]
        if shape == tuple(one.shape):
            continue
        row = shape is not None and one.ndim <= 2 and _shrank_by(tuple(one.shape), shape) == [missing]
        routers[module] = routers.get(module, True) and row
        lacking[module] = lacking.get(module, 0) + one.numel() - (fewer.get_parameter(name).numel() if shape else 0)
    return sum(count for module, count in lacking.items() if not routers[module])


def _shrank_by(shape: tuple[int, ...], other: tuple[int, ...]) -> list[int]:
    return [one - two for one, two in zip(shape, other, strict=True) if one != two]
