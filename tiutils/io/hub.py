"""The Hub: whether it answers, what its client has cached, and everything that is downloaded from it.

Reading public repositories, such as those of "sd-concepts-library", needs no token. What was downloaded once stays in
the Hub client's cache and is found there offline.
"""

from __future__ import annotations

import re
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tiutils.errors import InputError, first_line
from tiutils.io.files import refuse_size
from tiutils.io.progress import over_network

REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(.+))?", re.ASCII)


def is_repository_id(name: str) -> bool:
    """Whether a name has the form `owner/name`."""
    match = REPOSITORY.fullmatch(name)
    return match is not None and match[2] is None


def answers(path: str, *, timeout: float = 5.0) -> bool:
    """Whether the Hub confirms within `timeout` seconds that it has `models/<id>` or `datasets/<id>`.

    This is a single request, whereas the Hub's own client retries for minutes before it gives up.
    """
    from huggingface_hub import constants, utils

    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/api/{urllib.parse.quote(path)}"
    # with the token of `hf auth login`, if any: owners can see their private models
    request = urllib.request.Request(url, method="HEAD", headers=utils.build_hf_headers())
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except OSError:  # no network, no such model, or somebody else's private one
        return False


def has_model(name: str, revision: str | None = None) -> bool:
    """Whether a model is available, from the cache or from the Hub."""
    return cached_commit(name, revision) is not None or answers(f"models/{name}")


def cached_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a model's branch or tag has in the local cache; None if it is not there."""
    import huggingface_hub

    try:
        index = huggingface_hub.try_to_load_from_cache(name, "model_index.json", revision=revision)
    except huggingface_hub.errors.HFValidationError:  # a path, or anything else that is not an id
        return None
    return Path(index).parent.name if isinstance(index, str) else None


def download(name: str, patterns: Sequence[str], *, what: str = "", **options: Any) -> Path:
    """The local folder of a repository, once the files that match `patterns` are in the cache.

    Args:
        name: `owner/name`.
        patterns: as in `fnmatch`.
        what: for the progress line; the name by default.
        options: of `huggingface_hub.snapshot_download`: `revision`, `repo_type`, `token`, `ignore_patterns`.

    Raises:
        Exception: of any type; the client and its HTTP library have a dozen unrelated ones.
    """
    import huggingface_hub

    with over_network(f"asking the Hub for {what or name}"):
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **options))


def fetch_model(
    name: str,
    revision: str | None = None,
    variant: str | None = None,
    parts: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> Path:
    """Download a model's small files, the weights of `parts` and, where it has them, the `extra` files.

    Raises:
        InputError: the download failed.
    """
    infix, shard = f".{variant}" if variant else "", "-?????-of-?????"
    stems = [f"*model{infix}", f"*model{infix}{shard}", f"*model{shard}{infix}"]  # whole, sharded
    try:
        folder = download(
            name, ["*.json", "tokenizer/*", "tokenizer_2/*", *extra], revision=revision
        )
        for suffix in ("safetensors", "bin") if parts else ():  # old models have only the latter
            files = [f"{stem}.{suffix}" for stem in stems]
            patterns = [f"{part}/{file}" for part in parts for file in files]
            folder = download(name, patterns, revision=revision)
            if all(any(any((folder / part).glob(file)) for file in files) for part in parts):
                break
    except Exception as error:
        raise InputError(f"the Hub did not give the model {name!r}: {first_line(error)}") from error
    return folder


def fetch_dataset(dataset: str, patterns: Sequence[str], token: str | None) -> Path:
    """Download those files at the top level of a Hub dataset that match; subfolders are left out.

    Raises:
        InputError: it cannot be downloaded.
    """
    try:
        return download(
            dataset,
            patterns,  # datasets may contain gigabytes of archives
            what=f"the photos of {dataset}",
            repo_type="dataset",
            token=token,
            ignore_patterns=["*/*"],
        )
    except Exception as error:
        raise InputError(
            f"no folder {dataset!r} here, and no Hub dataset of that name could be fetched "
            f"({type(error).__name__}: {first_line(error)}): check the name and the connection "
            "(a private dataset needs a token), or give a local folder of photos"
        ) from error


def fetch_file(repository: str, names: Sequence[str]) -> Path:
    """Download the first of these files that a repository has; without the Hub, take it from the cache.

    Raises:
        InputError: there is none, it is far too large for an embedding, or the download failed.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    online = answers(f"models/{repository}")
    try:
        for name in names:
            with suppress(EntryNotFoundError):
                if online:  # check the size before anything is downloaded
                    url = huggingface_hub.hf_hub_url(repository, name)
                    size = huggingface_hub.get_hf_file_metadata(url).size or 0
                    refuse_size(f"{repository}/{name}", size)
                return Path(
                    huggingface_hub.hf_hub_download(repository, name, local_files_only=not online)
                )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the Hub did not give {repository!r}: {first_line(error)}") from error
    raise InputError(
        f"no file {repository!r} here, and no {' or '.join(names)} in that repository: "
        + (
            "name a file it has, as owner/name/FILE"
            if online
            else "it is not on the Hub or you may not read it, nor is it in the cache, or there is no network"
        )
    )


def check_token(token: object) -> None:
    """Refuse a malformed access token before another library prints it in an error message.

    Raises:
        InputError: it is not a single word of printable ASCII characters; the token is not shown.
    """
    if token is not None and not (isinstance(token, str) and re.fullmatch(r"[!-~]+", token)):
        raise InputError(
            "--hub_token must be one word without spaces or line breaks, as the Hub gave it, such as hf_…"
        )
