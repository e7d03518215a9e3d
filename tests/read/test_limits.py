"""The limits are those that docs/problems.md states, all of them."""

import re
from pathlib import Path

from base_model.hub import limits as of_servers
from base_model.read import limits as of_files
from base_model.train import arguments as of_plans

PAGE = (Path(__file__).parents[2] / "docs/problems.md").read_text("utf-8").partition("\n## Limits\n")[2]
UNSTATED = {"ANSWER_BYTES", "TICK"}  # the first is MAX_JSON_BYTES, the second is no limit
MODULES = (of_files, of_servers, of_plans)


def test_every_limit_is_stated_and_held():
    stated = {
        name: float(value.replace(",", "")) for value, name in re.findall(r"\| ([\d.,]+)[^|]* \| `(\w+)` \|", PAGE)
    }
    held = {name: value for module in MODULES for name, value in vars(module).items() if name.isupper()}
    numbers = {name: value for name, value in held.items() if isinstance(value, int | float)}
    limits = {name: value for name, value in numbers.items() if name not in UNSTATED and not of_a_plan(name)}
    assert stated == limits
    assert of_servers.ANSWER_BYTES == of_files.MAX_JSON_BYTES


def of_a_plan(name):
    """What a plan takes where nobody says otherwise is a choice, not a limit."""
    return name in vars(of_plans) and not name.startswith("MOST_")


def test_the_limits_of_settings_are_stated():
    words = " ".join(PAGE.partition("(`SETTINGS`): ")[2].split()).rstrip(".")
    groups = [group.rpartition(" ") for group in words.split("; ")]
    stated = {name: int(most.replace(",", "")) for names, _, most in groups for name in names.split(", ")}
    assert stated == of_files.SETTINGS
