"""Publishing a learned word on the Hub: its file, a card, its pictures. Never without being asked."""

from __future__ import annotations

import json
from pathlib import Path

from tiutils import embedding_files
from tiutils.errors import InputError

PUBLISHED = ("learned_embeds.safetensors", "learned_embeds.bin", "README.md", "*.png")


def check_access(token: str | None = None) -> str:
    """Ask the Hub who we are, before hours of training; returns the account's name.

    Raises:
        InputError: no token, a wrong one, or no network.
    """
    from huggingface_hub import HfApi

    try:
        return HfApi(token=token).whoami()["name"]
    except Exception as error:  # the Hub client's errors, its HTTP library's, and the network's
        raise InputError(
            f"--push_to_hub: the Hub did not accept us ({_first_line(error)}); run `hf auth login`, "
            f"or give --hub_token, or leave --push_to_hub out and publish later"
        ) from error


def model_card(output_dir: Path) -> str:
    """README.md of the repository, from the run's own record and its embedding file."""
    record = json.loads((output_dir / "run.json").read_text())
    file = next(path for path in map(output_dir.joinpath, PUBLISHED[:2]) if path.exists())
    learned = embedding_files.read(file)
    flags = record["flags"]
    pictures = "\n".join(
        f"![{path.stem}]({path.name})" for path in sorted(output_dir.glob("*.png"))
    )
    return f"""---
base_model: {record["model"]}
tags: [textual-inversion, stable-diffusion, diffusers, text-to-image]
---

# {learned.token}

A word learned by Textual Inversion for `{record["model"]}`: {len(learned.vectors)} vector(s) of width
{learned.vectors.shape[1]}, {record["steps"]} steps from `{flags["initializer_token"]}`.

```python
pipeline.load_textual_inversion("learned-word/{file.name}")
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
    (output_dir / "README.md").write_text(model_card(output_dir))
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id or output_dir.resolve().name, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo_id, folder_path=output_dir, allow_patterns=list(PUBLISHED),
            commit_message="A learned word",
        )  # fmt: skip
    except Exception as error:  # as above; a finished run must not end in a traceback
        raise InputError(
            f"publishing failed ({_first_line(error)}); the word is safe in {output_dir}"
        ) from error
    return f"https://huggingface.co/{repo_id}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
