"""Publishing a learned word on the Hub: its file, a card, a picture. Only on request, and private by default.

A few kilobytes are uploaded in one commit: the repository gets all of it or nothing. The photos, their names, this
machine's folders, and the access token are not uploaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tiutils.errors import InputError, first_line
from tiutils.io import embeddings, pretrained, run_folder
from tiutils.io.files import given
from tiutils.io.hub import check_token
from tiutils.io.progress import over_network
from tiutils.io.run_folder import read_record
from tiutils.publishing.model_card import model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger("tiutils")

PIPELINE_SUFFIXES = (".json", ".safetensors", ".txt")  # what `models.save` writes


def check_access(token: str | None = None, repo_id: str | None = None) -> str:
    """Ask the Hub, before hours of training, whether publishing is allowed; return the account's name.

    Args:
        token: an access token; that of `hf auth login` if None.
        repo_id: the repository, `name` or `owner/name`; None to check only the token.

    Raises:
        InputError: there is no token or no network, the token may not write there, or the repository cannot be used.
    """
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    api = _client(token)
    try:
        validate_repo_id(repo_id or "any")
        if not (repo_id or "").isascii():  # older clients let it pass, the Hub does not
            raise HFValidationError("only ASCII letters, digits, '-', '_', and '.' are allowed")
    except HFValidationError as error:
        raise InputError(
            f"{repo_id!r} cannot be a repository's name ({first_line(error)}); give --hub_model_id"
        ) from error
    try:
        account = api.whoami()
    except Exception as error:  # the Hub client's errors, its HTTP library's, and the network's
        has_none = isinstance(error, LocalTokenNotFoundError)
        found = "there is no access token" if has_none else _reason(error)
        raise InputError(
            f"cannot log in to the Hub ({found}): run `hf auth login`, or give --hub_token"
        ) from error
    name = account["name"]
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(f"the access token of {name!r} may only read; create one that may write")
    owner = (repo_id or "").rpartition("/")[0] or name
    mine = {name, *(each["name"] for each in account.get("orgs", ()))}
    if owner not in mine:
        raise InputError(
            f"--hub_model_id {repo_id}: {name!r} may write under {', '.join(sorted(mine))} only"
        )
    if repo_id:
        _check_repository(api, repo_id if "/" in repo_id else f"{name}/{repo_id}")
    return name


def publish(
    run_dir: str | Path,
    repo_id: str | None = None,
    *,
    token: str | None = None,
    public: bool = False,
    license: str | None = None,
    pictures: Sequence[str | Path] = (),
    full_pipeline: bool = False,
) -> str:
    """Upload the learned word of a run with its card; returns the page's address.

    Args:
        run_dir: output folder of a finished run.
        repo_id: `name` or `owner/name`; the folder's name if None.
        token: an access token; that of `hf auth login` if None.
        public: let everyone see it. A repository that is already public stays public.
        license: the Hub's name of a license, such as `"cc-by-4.0"`; by default the file's, or the base model's.
        pictures: PNG files for the card; the run's last validation picture if there are none.
        full_pipeline: upload the whole model too, as `--save_as_full_pipeline` wrote it: gigabytes.

    Raises:
        InputError: there is no run, or the Hub refused or cannot be reached; the files are unchanged.
    """
    run_dir = given(run_dir, "the run's folder")
    files = _files(run_dir, pictures, full_pipeline)
    record = read_record(run_dir)
    name, api = repo_id or run_dir.resolve().name, _client(token)
    account = check_access(token, name)
    name = name if "/" in name else f"{account}/{name}"
    card = model_card(files, name, record, license)
    from huggingface_hub import CommitOperationAdd

    additions = [
        CommitOperationAdd("README.md", card.encode(errors="replace")),
        *(CommitOperationAdd(there, str(here)) for there, here in files.items()),
    ]
    size = sum(path.stat().st_size for path in files.values())
    try:
        with over_network(f"publishing {name}: {len(additions)} files, {size / 1024:,.0f} KiB"):
            url = api.create_repo(name, private=True, exist_ok=True)
            api.create_commit(name, additions, commit_message="A learned word")
            if public:  # only now that everything is uploaded
                api.update_repo_settings(name, private=False)
    except Exception as error:  # as above; a finished run must not end in a traceback
        raise InputError(
            f"publishing {name} failed ({_reason(error)}); nothing here is lost or changed: try again with "
            f"`tiutils push {run_dir}`"
        ) from error
    return str(url)


def _client(token: str | None) -> HfApi:
    from huggingface_hub import HfApi

    check_token(token)
    return HfApi(token=token)


def _check_repository(api: HfApi, repo_id: str) -> None:
    """Refuse to overwrite anything but a learned word; warn of a repository that everyone can see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise InputError(f"the Hub did not say what {repo_id} is ({_reason(error)})") from error
    held = {file.rfilename for file in info.siblings or ()} - {".gitattributes", "README.md"}
    if held and not held & set(embeddings.FILE_NAMES):
        raise InputError(
            f"{repo_id} already exists and contains something else ({min(held)}); give another --hub_model_id"
        )
    if not info.private:
        logger.warning(
            "%s already exists and is public: everyone can see what is published", repo_id
        )


def _files(run_dir: Path, pictures: Sequence[str | Path], full_pipeline: bool) -> dict[str, Path]:
    """What is published, by name in the repository; nothing in the run's folder that is a link to the outside."""
    root = run_dir.resolve()

    def is_ours(path: Path) -> bool:
        return path.is_file() and path.resolve().is_relative_to(root)

    words = [run_dir / name for name in embeddings.FILE_NAMES if is_ours(run_dir / name)]
    if not words:
        raise InputError(
            f"{run_dir} has no learned word ({' or '.join(embeddings.FILE_NAMES)}); give the folder of a run"
        )
    drawn = {
        path.stem.removeprefix(run_folder.SHEETS): path
        for path in run_dir.glob(f"{run_folder.SHEETS}*.png")
    }
    steps = [step for step, path in drawn.items() if step.isdecimal() and is_ours(path)]
    last = [drawn[max(steps, key=int)]] if steps else []
    files = {words[0].name: words[0]}
    files |= {
        f"picture-{n}.png": given(path, "--picture")
        for n, path in enumerate(pictures or last, start=1)
    }
    if not full_pipeline:
        return files
    index = run_dir / run_folder.PIPELINE
    if not is_ours(index):
        raise InputError(f"{run_dir} has no whole model; train with --save_as_full_pipeline")
    parts = [run_dir / part for part in pretrained.PARTS]
    found = [index, *(path for part in parts for path in sorted(part.glob("*")))]
    kept = [path for path in found if path.suffix in PIPELINE_SUFFIXES and is_ours(path)]
    return files | {path.relative_to(run_dir).as_posix(): path for path in kept}


def _reason(error: Exception) -> str:
    """What went wrong, in one line: the Hub's own words, if there are any."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # a failed upload hides behind the name of its file
    said = getattr(error, "server_message", None)
    status = getattr(getattr(error, "response", None), "status_code", "no status")
    return f"{status}: {said.strip().splitlines()[0]}" if said else first_line(error)
