"""Teach the bundled model the words of the three concepts: python -m data.recipes.results.embeddings

Writes `data/embeddings/NAME.safetensors` for each concept, `steps/wood-toy-STEPS.safetensors` from one run that trains
far too long, and the README in that folder. A word belongs to the model it was learned with: run this again after
`data/tiny-sd` has changed (minutes; an interrupted run continues). `--plain` teaches the three words with the settings
of diffusers' script and writes them to `runs/embeddings/plain`, for comparison with those of `tiutils train`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import tiutils
from tiutils.config import AS_THE_SCRIPT
from tiutils.io import embeddings
from tiutils.io.pretrained import BUNDLED_MODEL

ROOT = Path(__file__).resolve().parents[3]
WORDS, CONCEPTS = ROOT / "data" / "embeddings", ROOT / "data" / "concepts"
NAMES = ("wood-toy", "rocking-horse", "teddy-bear")
STEPS = 300
LONG_RUN, LONG_RUN_STEPS = "wood-toy", (50, 100, 200, 300, 600, 1200)

CARD = """# Learned words

Words that the bundled model was taught, one file of about a kilobyte each, so that the notebooks can use a word
without training it first. `python -m data.recipes.results.embeddings` makes them again, and this page.

| file | word | started from | steps | photos |
|---|---|---|---|---|
{rows}

All were learned with `data/tiny-sd` (weights {digest}), seed 0, and the default settings of `tiutils train`. The files
in `steps/` come from one run that continued to {last} steps without norm control (`--norm_control 0
--timestep_sampling uniform`), to show what too many steps do. A word means nothing to any other model.
License: CC0 1.0, like the photos.

```python
import tiutils

models = tiutils.load("data/tiny-sd")
tiutils.load_embedding(models, "data/embeddings/wood-toy.safetensors")
tiutils.generate(models, "a <wood-toy> on the beach")[0]
```
"""


def model_digest(model: Path = BUNDLED_MODEL) -> str:
    """Sixteen hexadecimal digits that depend on the weights a word depends on: text encoder and U-Net."""
    digest = hashlib.sha256()
    for part in ("text_encoder", "unet"):
        for path in sorted((model / part).glob("*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def teach(name: str, steps: int, save_steps: int, digest: str, **flags) -> Path:
    """Train one concept's word, continuing an interrupted run; return the run's folder."""
    about = json.loads((CONCEPTS / name / "concept.json").read_text())
    settings = "".join(f"-{flag}-{value}" for flag, value in flags.items())
    folder = ROOT / "runs" / "embeddings" / digest / f"{name}-{steps}{settings}"
    if not (folder / "learned_embeds.safetensors").exists():
        config = tiutils.TrainingConfig(
            pretrained_model_name_or_path=str(BUNDLED_MODEL),
            train_data_dir=str(CONCEPTS / name),
            placeholder_token=about["placeholder_token"],
            initializer_token=about["initializer_token"],
            max_train_steps=steps,
            save_steps=save_steps,
            checkpointing_steps=100,
            checkpoints_total_limit=1,
            resume_from_checkpoint="latest",
            output_dir=str(folder),
            **flags,
        )
        tiutils.train(config)
    return folder


def ship(source: Path, target: Path, digest: str) -> embeddings.LearnedEmbedding:
    """Copy a learned word. Its metadata names its model by a digest, not by a folder of this machine."""
    learned = embeddings.read(source)
    learned.metadata.update(base_model=BUNDLED_MODEL.name, model_digest=digest)
    embeddings.write(target, learned)
    return learned


def card(digest: str) -> str:
    """The README about the words in the folder."""
    rows = []
    for name in NAMES:
        learned = embeddings.read(WORDS / f"{name}.safetensors")
        about = learned.metadata
        rows.append(
            f"| `{name}.safetensors` | `{learned.token}` | `{about['initializer_token']}` | "
            f"{about['steps']} | `data/concepts/{name}/` |"
        )
    stages = [int(path.stem.rsplit("-", 1)[1]) for path in (WORDS / "steps").glob("*.safetensors")]
    return CARD.format(rows="\n".join(rows), digest=digest, last=max(stages))


def teach_plainly(digest: str) -> None:
    """Teach the three words with the script's settings."""
    for name in NAMES:
        run = teach(name, STEPS, STEPS, digest, **AS_THE_SCRIPT)
        target = ROOT / "runs" / "embeddings" / "plain" / f"{name}.safetensors"
        ship(run / "learned_embeds.safetensors", target, digest)


def main() -> None:
    """Train what is missing, copy all words to `data/embeddings`, and write its README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--plain", action="store_true", help="with the settings of diffusers' script"
    )
    digest = model_digest()
    if parser.parse_args().plain:
        return teach_plainly(digest)
    for name in NAMES:
        run = teach(name, STEPS, STEPS, digest)
        ship(run / "learned_embeds.safetensors", WORDS / f"{name}.safetensors", digest)
    run = teach(LONG_RUN, LONG_RUN_STEPS[-1], LONG_RUN_STEPS[0], digest, **AS_THE_SCRIPT)
    for steps in LONG_RUN_STEPS:
        file = run / f"learned_embeds-steps-{steps}.safetensors"
        ship(file, WORDS / "steps" / f"{LONG_RUN}-{steps}.safetensors", digest)
    (WORDS / "README.md").write_text(card(digest), encoding="utf-8")


if __name__ == "__main__":
    main()
