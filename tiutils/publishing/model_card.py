"""The model card of a learned word: how to use it, how it was learned, under which terms."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from tiutils.errors import InputError, first_line
from tiutils.io import embeddings, engines, hub, pretrained
from tiutils.io.run_folder import entry

MAX_PICTURE_BYTES = 8 * 2**20
# Base models whose license is known to bind what is made from them; of others the card says to look.
LICENSES = {pretrained.DEFAULT_MODEL: "creativeml-openrail-m"}


def model_card(
    files: dict[str, Path], repo_id: str, record: dict[str, Any], license: str | None = None
) -> str:
    """README.md of the repository.

    Args:
        files: what is published, by name in the repository.
        repo_id: `owner/name`.
        record: the run's `run.json`; whatever it lacks is left out.
        license: see `publish.publish`.

    Raises:
        InputError: `license` is not the Hub's name of a license.
    """
    file = next(name for name in embeddings.FILE_NAMES if name in files)
    learned = embeddings.read(files[file])
    base, is_on_hub = base_model(str(record.get("model") or learned.metadata.get("base_model")))
    license = license or learned.metadata.get("license") or LICENSES.get(base)
    if license and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(f"--license {license!r}: give the Hub's name of one, such as cc-by-4.0")
    # each of these was matched against a pattern or is ours, so that nothing needs to be escaped
    front = {
        "license": license,
        "base_model": base if is_on_hub else None,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["textual-inversion", "stable-diffusion", "diffusers"],
    }
    whole = "model_index.json" in files
    source = json.dumps(repo_id if whole else base)
    pipeline, imports, load = _loading(learned, repo_id, file)
    prompt = json.dumps(f"a photo of a {learned.token}", ensure_ascii=False)
    shown = "\n\n".join(
        f"![{plain(alt_text(path))}]({name})" for name, path in files.items() if name[-4:] == ".png"
    )
    facts = "\n".join(
        f"| {name} | {plain(value)} |" for name, value in _facts(record, learned, base)
    )
    terms = f"`{license}`." if license else "None was stated."
    return f"""---
{"".join(f"{key}: {json.dumps(value)}{chr(10)}" for key, value in front.items() if value)}---

# {plain(learned.token)}

A word learned by [Textual Inversion](https://arxiv.org/abs/2208.01618): {len(learned.vectors)} vector(s) of width
{" and ".join(map(str, learned.widths))}, a file of a few kilobytes. Nothing else of the model was changed.

```python
from diffusers import {pipeline}
{"" if whole else imports}
pipeline = {pipeline}.from_pretrained({source})
{"" if whole else load}pipeline({prompt}).images[0].save("picture.png")
```

{shown}

## In other programs

Most programs go by the file's name, and want a form of their own: `tiutils convert {file} --for PROGRAM`
writes it, for `{"`, `".join(engines.ENGINES)}`.

{engines.table(learned.token)}

## How it was learned

| | |
|---|---|
{facts}

The photos are not published.

## License

{terms} The base model's own license also applies to pictures made with it.
"""


def _loading(learned: embeddings.LearnedEmbedding, repo_id: str, file: str) -> tuple[str, str, str]:
    """Python code that loads a word: diffusers' pipeline, further imports, and the lines that follow."""
    if not learned.others:
        line = f'pipeline.load_textual_inversion("{repo_id}", weight_name="{file}")\n'
        return "StableDiffusionPipeline", "", line
    reader = "from safetensors.torch import load_file\n"
    call = f'load_file(hf_hub_download("{repo_id}", "{file}"))'
    if file.endswith(".bin"):
        reader, call = "import torch\n", call.replace("load_file(", "torch.load(", 1)
    token = json.dumps(learned.token, ensure_ascii=False)
    lines = [f"word = {call}"] + [
        f'pipeline.load_textual_inversion(word["{name}"], {token}, text_encoder=pipeline.text_encoder{suffix}, '
        f"tokenizer=pipeline.tokenizer{suffix})"
        for name, suffix in zip(learned.by_encoder, ("", "_2"), strict=True)
    ]
    imports = f"from huggingface_hub import hf_hub_download\n{reader}"
    return "StableDiffusionXLPipeline", imports, "\n".join([*lines, ""])


def plain(text: object) -> str:
    """Text of unknown origin as one line of plain Markdown, without tags, links, cells, or headings."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(str(text)[:500].split()))


def alt_text(path: Path) -> str:
    """The description in a PNG, as `output.save` writes it; refuses other files and huge ones.

    Raises:
        InputError: it is another kind of file, cannot be read, or is too large for a card.
    """
    try:
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise InputError(f"--picture {path} has more than {MAX_PICTURE_BYTES // 2**20} MiB")
        with Image.open(path, formats=["PNG"]) as image:
            return str(
                image.info.get("Description") or f"A picture drawn with the word, {path.stem}"
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--picture {path} is not a PNG file ({first_line(error)})") from error


def base_model(name: str) -> tuple[str, bool]:
    """The base model's name, without folders of this machine, and whether it is a repository on the Hub."""
    if not os.path.exists(name) and hub.is_repository_id(name):
        return name, True
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1], False


def _facts(
    record: dict[str, Any], learned: embeddings.LearnedEmbedding, base: str
) -> list[tuple[str, Any]]:
    """How the word was made, as far as it is known: names and values."""
    flags, scores, versions = (entry(record, key, dict) for key in ("flags", "scores", "versions"))
    losses, photos = (entry(record, key, list) for key in ("losses", "photos"))
    last = [loss for loss in losses[-50:] if isinstance(loss, float)]
    batch = [flags.get("train_batch_size"), flags.get("gradient_accumulation_steps")]
    noun = flags.get("initializer_phrase") or flags.get("initializer_token")
    facts = [
        ("base model", base),
        ("started from", "the photos" if flags.get("initializer_from_photos") is True else noun),
        ("learned as", flags.get("learnable_property")),
        ("photos", len(photos) or None),
        ("steps", record.get("steps")),
        ("batch", " × ".join(map(str, batch)) if all(batch) else None),
        ("learning rate", flags.get("learning_rate")),
        ("seed", flags.get("seed")),
        ("loss, mean of the last steps", f"{math.fsum(last) / len(last):.4f}" if last else None),
        ("prompt of the pictures", flags.get("validation_prompt")),
    ]
    learned_scores, plain_scores = (entry(scores, key, dict) for key in ("scores", "plain_scores"))
    for name, score in learned_scores.items():  # as `tiutils evaluate` writes them
        value = score.get("value") if isinstance(score, dict) else None
        if isinstance(value, float) and isinstance(other := plain_scores.get(name), float):
            label = plain(name.replace("_", " "))
            facts.append((label, f"{value:.4f} (plain word: {other:.4f})"))
    facts.append(("software", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return [(name, value) for name, value in facts if value not in (None, "")]
