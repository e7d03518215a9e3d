"""The model itself: its complete folder, found on the disk or downloaded, or what is known of it before that."""

from pathlib import Path

import pandas as pd

from base_model import ModelError, visible
from base_model.hub import access, download
from base_model.hub.locate import (
    NEXT_STEP,
    hint_at_spelling,
    hub_id_of,
    is_complete,
    local_folder,
    nearest,
    only_described,
)
from base_model.read.folder import completeness, is_folder


def fetch_model(model: str | Path, folder: str | Path | None = None, verify: bool = False) -> Path:
    """The complete local folder of a model: found on the disk, or downloaded from the Hub.

    `model` is a folder or a Hub id ("org/name", or "org/name@revision"); `folder` is where a download goes, by
    default the name after the slash, in the project's folder (in the current one if the project is installed). Complete
    means config.json, a tokenizer, and every shard that the index names at the length its header implies. With a
    complete folder no request is made, except by `verify`, which compares every file's hash with the Hub's.

    Raises ModelError: which file is missing, short or changed; what to do about a gated or missing model or a full
    disk. Ctrl-C stops a download within two seconds and leaves the finished files.
    """
    target, hub_id = Path(folder) if folder is not None else local_folder(model), hub_id_of(model)
    if verify and hub_id is None:
        raise ModelError(
            "`verify` compares with the Hub, so it needs a Hub id: "
            f'fetch_model("org/name", folder={str(target)!r}, verify=True).'
        )
    missing = completeness(target).missing if is_folder(target) else [f"{target} does not exist"]
    if missing and hub_id is None:
        raise ModelError(f"{target} is not a complete model: {'; '.join(missing)}. {NEXT_STEP}{nearest(target)}")
    if not missing and (words := download.on_leftovers(target)):
        print(words)
    if missing and hub_id:
        with hint_at_spelling(target):
            download.download(hub_id, target)
        if missing := completeness(target).missing:
            raise ModelError(
                f"{model} was downloaded, but {'; '.join(missing)}. Delete that file, then run this again."
            )
    if hub_id and verify:
        download.verify(hub_id, target)
    return target


def open_model(model: str | Path, download_it: bool | str = True) -> Path | str:
    """What the other functions should read: the complete local folder, downloaded first if need be.

    With `download_it` False or "no", or too little disk space, the Hub id itself, to be read over the network; a folder
    without weights is read from its config.json. A printed sentence says so. Raises ModelError as `fetch_model` does.
    """
    hub_id, folder, wanted = hub_id_of(model), local_folder(model), is_yes(download_it)
    if hub_id is None and only_described(folder):
        print(f"{folder.name} has a config.json but no weights. Steps that need weights are skipped.")
        return folder
    reason = "DOWNLOAD is no"
    if wanted or hub_id is None or is_complete(folder):
        try:
            return fetch_model(model)
        except download.NoSpaceError as error:
            reason = str(error)
    print(f"{model} is read over the network, headers only ({reason}). Steps that need weights are skipped.")
    return str(model)


def is_yes(answer: bool | str) -> bool:
    """Yes or no, as a command line or papermill writes it: "no", "False", "0", True. Raises ModelError."""
    word = str(answer).strip().lower()
    if word not in ("yes", "true", "1", "no", "false", "0"):
        raise ModelError(f'DOWNLOAD must be "yes" or "no", not {visible(repr(answer))}.')
    return word in ("yes", "true", "1")


def hub_facts(model: str) -> pd.DataFrame:
    """What the Hub tells anyone about a model, gated or not, in one request; columns `fact`, `value` (text).

    Its page, commit, access, licence, files, parameters. Raises ModelError when there is no such model, or no Hub.
    """
    hub_id = access.parse_id(str(model))
    if hub_id is None:
        raise ModelError(f'{model} is not a Hub id, which has the form "org/name".')
    return pd.DataFrame(access.public_facts(hub_id).items(), columns=["fact", "value"])
