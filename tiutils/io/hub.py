"""The Hub: whether it answers, what lies in its client's cache, and files, models and photos fetched from it.

Its concept library is "sd-concepts-library": a repository for each word. Reading from it
needs no token; what was fetched once is in the Hub client's cache and is found there offline.
"""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tiutils.errors import InputError, first_line
from tiutils.io.files import refuse_size
from tiutils.io.progress import over_network

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(.+))?", re.ASCII)


def fetch_file(repository: str, names: Sequence[str]) -> Path:
    """The first of the files that the repository has; from the cache where there is no Hub."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    online = hub_answers(f"models/{repository}")
    try:
        for name in names:
            with suppress(EntryNotFoundError):
                if online:
                    _check_size(repository, name)
                file = huggingface_hub.hf_hub_download(
                    repository, name, local_files_only=not online
                )
                return Path(file)
    except InputError:
        raise
    except Exception as error:  # the client's own errors, and its HTTP library's
        raise InputError(f"the Hub did not give {repository!r}: {first_line(error)}") from error
    where = "it is not on the Hub or not yours, nor in the cache"
    raise InputError(
        f"no file {repository!r} here, and no {' or '.join(names)} of that repository: "
        + ("name a file it has, owner/name/FILE" if online else f"{where}, or there is no network")
    )


def _check_size(repository: str, name: str) -> None:
    """Refuse a file that is far too large for an embedding, before it is fetched."""
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, name)
    refuse_size(f"{repository}/{name}", huggingface_hub.get_hf_file_metadata(url).size or 0)


def hub_answers(path: str, *, timeout: float = 5.0) -> bool:
    """Whether the Hub says within `timeout` seconds that it has `models/<id>` or `datasets/<id>`.

    One request, because the Hub's own client tries again for minutes before it gives up.
    """
    from huggingface_hub import constants, utils

    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/api/{urllib.parse.quote(path)}"
    # with the token of `hf auth login`, if there is one: a private model is there for its owner
    request = urllib.request.Request(url, method="HEAD", headers=utils.build_hf_headers())
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except OSError:  # no network, no such model, another's private one: it cannot be had
        return False


def cached(name: str, revision: str | None = None) -> bool:
    """Whether the model's index lies in the local Hub cache."""
    return cached_commit(name, revision) is not None


def cached_commit(name: str, revision: str | None = None) -> str | None:
    """The commit of a model on the Hub that its branch or tag means in the local cache; None if it is not there."""
    import huggingface_hub

    try:
        index = huggingface_hub.try_to_load_from_cache(name, "model_index.json", revision=revision)
    except huggingface_hub.errors.HFValidationError:  # a path, or another word that can be no id
        return None
    return Path(index).parent.name if isinstance(index, str) else None


def fetch_model(
    name: str,
    revision: str | None,
    variant: str | None,
    parts: Sequence[str],
    extra: Sequence[str] = (),
) -> Path:
    """Bring a model's small files, the weights of `parts` and, where it has them, the files `extra` into the cache."""
    import huggingface_hub

    def fetch(patterns: Sequence[str]) -> Path:
        with over_network(f"asking the Hub for {name}"):
            found = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=patterns
            )
        return Path(found)

    folder = fetch(["*.json", "tokenizer/*", *extra])
    infix, shard = f".{variant}" if variant else "", "-?????-of-?????"
    stems = [f"*model{infix}", f"*model{infix}{shard}", f"*model{shard}{infix}"]  # whole, in shards
    for suffix in ("safetensors", "bin") if parts else ():  # old models have the latter alone
        names = [f"{stem}.{suffix}" for stem in stems]
        folder = fetch([f"{part}/{name}" for part in parts for name in names])
        if all(any(any((folder / part).glob(name)) for name in names) for part in parts):
            break
    return folder


def fetch_dataset(dataset: str, patterns: Sequence[str], token: str | None) -> Path:
    """The top-level files of a Hub dataset that match, in the Hub client's cache, which works offline."""
    try:
        from huggingface_hub import snapshot_download  # here: a local folder needs no Hub client

        with over_network(f"asking the Hub for the photos of {dataset}"):
            folder = snapshot_download(
                dataset,
                repo_type="dataset",
                token=token,
                allow_patterns=patterns,  # datasets may hold gigabytes of archives
                ignore_patterns=["*/*"],
            )
    except Exception as error:  # the client and its HTTP library raise a dozen unrelated types
        raise InputError(
            f"no folder {dataset!r} here, and no Hub dataset of that name could be fetched "
            f"({type(error).__name__}: {first_line(error)}): check the name and the connection "
            "(a private dataset needs a token), or give a local folder of photos"
        ) from error
    return Path(folder)


def check_token(token: object) -> None:
    """Refuse an access token that cannot be one: other libraries would show it in their complaint.

    Raises:
        InputError: it is no text, empty, or more than one word of ASCII characters; it is not shown.
    """
    if token is not None and not (isinstance(token, str) and re.fullmatch(r"[!-~]+", token)):
        raise InputError(
            "--hub_token must be one word without spaces or line breaks, as the Hub gave it, such as hf_…"
        )
