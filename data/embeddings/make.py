"""Teach the bundled model the words of the three concepts: python -m data.embeddings.make

Writes `NAME.safetensors` for each concept, `steps/wood-toy-STEPS.safetensors` of one run that goes
on far too long, and the card. Words belong to the model they were learned with: after a change of
`data/tiny-sd`, run it again (minutes; a killed run goes on). Needs the repository's root as working
directory. `--plain` teaches the three with the settings of diffusers' script, into
`runs/embeddings/plain`, to see what the settings of `tiutils train` are worth.
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

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CONCEPTS = HERE.parent / "concepts"
NAMES = ("wood-toy", "rocking-horse", "teddy-bear")
STEPS = 300
LONG_RUN, LONG_RUN_STEPS = "wood-toy", (50, 100, 200, 300, 600, 1200)

CARD = """# Learned words

Words that the bundled model was taught, one file of a kilobyte each, so that `notebooks/04_inference.ipynb` needs
not wait for a training. `python -m data.embeddings.make` makes them anew, and this page.

| file | word | started from | steps | photos |
|---|---|---|---|---|
{rows}

All were learned with `data/tiny-sd` (weights {digest}), seed 0, and the settings of `tiutils train`. The files in
`steps/` are of one run that went on to {last} steps with rows of any length (`--norm_control 0
--timestep_sampling uniform`), so that one can see what too many do. A word means nothing to any other model.
Licence: CC0 1.0, as the photos.

```python
import tiutils

parts = tiutils.load("data/tiny-sd")
tiutils.load_embedding(parts, "data/embeddings/wood-toy.safetensors")
tiutils.generate(parts, "a <wood-toy> on the beach")[0]
```
"""


def model_digest(model: Path = BUNDLED_MODEL) -> str:
    """Sixteen hexadecimal digits of what a word depends on: the table and the U-Net that reads it."""
    digest = hashlib.sha256()
    for part in ("text_encoder", "unet"):
        for path in sorted((model / part).glob("*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def teach(name: str, steps: int, save_steps: int, digest: str, **flags) -> Path:
    """Train one concept's word; returns the run's folder. Goes on where an earlier call was killed."""
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
    """Copy a learned word; its metadata name its model by a digest, and no folder of this machine."""
    learned = embeddings.read(source)
    learned.metadata.update(base_model=BUNDLED_MODEL.name, model_digest=digest)
    embeddings.write(target, learned)
    return learned


def card(digest: str) -> str:
    """The page about the words that are here now."""
    rows = []
    for name in NAMES:
        learned = embeddings.read(HERE / f"{name}.safetensors")
        about = learned.metadata
        rows.append(
            f"| `{name}.safetensors` | `{learned.token}` | `{about['initializer_token']}` | "
            f"{about['steps']} | `data/concepts/{name}/` |"
        )
    stages = [int(path.stem.rsplit("-", 1)[1]) for path in (HERE / "steps").glob("*.safetensors")]
    return CARD.format(rows="\n".join(rows), digest=digest, last=max(stages))


def teach_plainly(digest: str) -> None:
    """The three words with the script's settings, for comparison."""
    for name in NAMES:
        run = teach(name, STEPS, STEPS, digest, **AS_THE_SCRIPT)
        target = ROOT / "runs" / "embeddings" / "plain" / f"{name}.safetensors"
        ship(run / "learned_embeds.safetensors", target, digest)


def main() -> None:
    """Train what is missing, copy all words here and write the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true", help="as diffusers' script, for comparison")
    digest = model_digest()
    if parser.parse_args().plain:
        return teach_plainly(digest)
    for name in NAMES:
        run = teach(name, STEPS, STEPS, digest)
        ship(run / "learned_embeds.safetensors", HERE / f"{name}.safetensors", digest)
    run = teach(LONG_RUN, LONG_RUN_STEPS[-1], LONG_RUN_STEPS[0], digest, **AS_THE_SCRIPT)
    for steps in LONG_RUN_STEPS:
        file = run / f"learned_embeds-steps-{steps}.safetensors"
        ship(file, HERE / "steps" / f"{LONG_RUN}-{steps}.safetensors", digest)
    (HERE / "README.md").write_text(card(digest), encoding="utf-8")


if __name__ == "__main__":
    main()
