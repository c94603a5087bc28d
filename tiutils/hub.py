"""Publishing a learned word on the Hub: its file, a card, its pictures. Never without being asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tiutils import embedding_files
from tiutils.errors import InputError, first_line

WORDS = ("learned_embeds.safetensors", "learned_embeds.bin")
# Pictures of the run, but not of the photos: those are the user's own.
PICTURES = "validation-steps-*.png"


def check_access(token: str | None = None, repo_id: str | None = None) -> str:
    """Ask the Hub who we are, before hours of training; returns the account's name.

    Raises:
        InputError: no token, a wrong one, no network, or a name that no repository can have.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id or "any")
    except HFValidationError as error:
        raise InputError(
            f"--push_to_hub: {repo_id!r} can be no repository's name ({first_line(error)}); "
            f"give --hub_model_id"
        ) from error
    try:
        return HfApi(token=token).whoami()["name"]
    except Exception as error:  # the Hub client's errors, its HTTP library's, and the network's
        raise InputError(
            f"--push_to_hub: the Hub did not accept us ({first_line(error)}); run `hf auth login`, "
            f"or give --hub_token, or leave --push_to_hub out and publish later"
        ) from error


def model_card(output_dir: Path, repo_id: str) -> str:
    """README.md of the repository, from the run's own record and its embedding file."""
    record = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    file = next(path for path in map(output_dir.joinpath, WORDS) if path.exists())
    learned = embedding_files.read(file)
    flags, model = record["flags"], record["model"]
    # the Hub refuses a card whose base model is no repository; and nobody needs to know our folders
    base_model = "" if os.path.isdir(model) else f"base_model: {model}\n"
    model = os.path.basename(model) if os.path.isdir(model) else model
    pictures = "\n".join(
        f"![Drawn after {path.stem.split('-')[-1]} steps]({path.name})"
        for path in sorted(output_dir.glob(PICTURES))
    )
    return f"""---
{base_model}tags: [textual-inversion, stable-diffusion, diffusers, text-to-image]
---

# {learned.token}

A word learned by Textual Inversion for `{model}`: {len(learned.vectors)} vector(s) of width
{learned.vectors.shape[1]}, {record["steps"]} steps from `{flags["initializer_token"]}`.

```python
pipeline.load_textual_inversion("{repo_id}", weight_name="{file.name}")
pipeline("a photo of {learned.token}")
```

{pictures}
"""


def push(output_dir: str | Path, repo_id: str | None = None, *, token: str | None = None) -> str:
    """Upload the learned word of a run, its card and its pictures; returns the page's address.

    Raises:
        InputError: the Hub refused, or cannot be reached; the files are untouched.
    """
    from huggingface_hub import HfApi

    output_dir = Path(output_dir)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id or output_dir.resolve().name, exist_ok=True).repo_id
        card = model_card(output_dir, repo_id)
        api.upload_file(repo_id=repo_id, path_in_repo="README.md", path_or_fileobj=card.encode())
        api.upload_folder(
            repo_id=repo_id, folder_path=output_dir, allow_patterns=[*WORDS, PICTURES],
            commit_message="A learned word",
        )  # fmt: skip
    except Exception as error:  # as above; a finished run must not end in a traceback
        raise InputError(
            f"publishing failed ({first_line(error)}); the word is safe in {output_dir}"
        ) from error
    return f"https://huggingface.co/{repo_id}"
