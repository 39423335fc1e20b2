"""Model files of the Hugging Face Hub, by `hf://user/name`: downloaded once, then from the cache of huggingface_hub."""

import os
import re
from pathlib import Path

from utils.errors import UserError

PREFIX = "hf://"
FORM = re.compile(
    r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?(:(?P<file>[\w./-]+))?"
)
MODEL = "model.pth"


def is_on_hub(name: str) -> bool:
    """Whether a name means a model of the Hub."""
    return name.startswith(PREFIX)


def download(name: str, key: str) -> Path:
    """The model file of `hf://user/name`, `hf://user/name@revision` or `hf://user/name:other.pth`.

    Nothing of it is run; it is read as any other model file.

    Args:
        name: of the repository, and which file of it; model.pth by default.
        key: the setting that names it, for messages.

    Raises:
        UserError: it is not there, and not in the cache either.
    """
    match = FORM.fullmatch(name)
    if match is None:
        raise UserError(
            f"{key}: {name} is not hf://user/name, hf://user/name@revision or with :FILE"
        )
    # It takes a second to import.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    file = match["file"] or MODEL
    try:
        path = huggingface_hub.hf_hub_download(
            match["repository"],
            file,
            revision=match["revision"],
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{key}: {name} is not in the cache, and the Hub cannot be reached: is the machine offline? A file that "
            "was downloaded elsewhere can be named in its place"
        ) from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{key}: {name} has no {file} that may be read: look at the name, log in with `hf auth login` if it is "
            f"private, or name its file, {PREFIX}user/name:FILE ({reason})"
        ) from None
    return Path(path)
