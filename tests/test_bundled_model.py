"""data/tiny-sd is an ordinary Stable Diffusion folder that old and new libraries read alike."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import overlays
import pytest
import safetensors
from PIL import Image

from tiutils import concept, models
from tiutils.evaluation import clip as clip_model
from tiutils.io import pretrained

FOLDER = pretrained.BUNDLED_MODEL
WEIGHTS = [
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "evaluator/model.safetensors",
    "word_encoder/model.safetensors",
]

# Run by a bare interpreter: the stock pipeline, with no word of ours.
STOCK = """
import sys, numpy, torch, transformers
from diffusers import StableDiffusionPipeline
assert transformers.__version__.startswith(sys.argv[3]), transformers.__version__
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
assert {p.dtype for m in (pipe.text_encoder, pipe.unet, pipe.vae) for p in m.parameters()} == {torch.float32}
ids = pipe.tokenizer(["a photo of a red toy horse on the beach", "two cats"], padding="max_length").input_ids
states = pipe.text_encoder(torch.tensor(ids))[0].detach().numpy()
image = pipe("a photo of a cat", num_inference_steps=4, generator=torch.manual_seed(0), output_type="np").images
assert not any(name.split(".")[0] == "tiutils" for name in sys.modules)
numpy.savez(sys.argv[2], ids=ids, states=states, image=image)
"""


@pytest.mark.release
@pytest.mark.slow
def test_transformers_4_and_5_read_the_same_model(tmp_path):
    overlays.run_under("transformers-4.57", STOCK, str(FOLDER), str(tmp_path / "old.npz"), "4.57")
    subprocess.run(
        [sys.executable, "-c", STOCK, str(FOLDER), str(tmp_path / "new.npz"), "5."], check=True
    )
    new, old = np.load(tmp_path / "new.npz"), np.load(tmp_path / "old.npz")
    assert (new["ids"] == old["ids"]).all()
    np.testing.assert_allclose(new["states"], old["states"], atol=1e-5)
    np.testing.assert_allclose(new["image"], old["image"], atol=1e-3)
    assert new["image"].std() > 0.05, "a picture, not a blank"


def test_the_folder_is_small_enough_to_ship():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 40_000_000


def test_the_five_parts_of_stable_diffusion():
    index = json.loads((FOLDER / "model_index.json").read_text())
    names = {k: v[1] for k, v in index.items() if not k.startswith("_") and isinstance(v, list)}
    assert {k: v for k, v in names.items() if v} == {
        "scheduler": "PNDMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
    assert pretrained.guidance_scale(FOLDER) == 2.5
    scheduler = pretrained.read_config(FOLDER, "scheduler")
    expected = {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    assert scheduler.items() >= expected.items()
    assert pretrained.read_config(FOLDER, "vae")["latent_channels"] == 4
    assert pretrained.read_config(FOLDER, "text_encoder")["dtype"] == "float32"
    assert "cross_attention_dim" in pretrained.read_config(FOLDER, "unet")


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_half_precision_safetensors(name):
    with safetensors.safe_open(FOLDER / name, "np") as file:
        keys = list(file.keys())
        assert all(file.get_slice(key).get_dtype() == "F16" for key in keys)
    if name.startswith("text_encoder"):
        assert all(key.startswith("text_model.") for key in keys)


def test_words_that_the_course_needs_are_single_tokens():
    tokenizer = pretrained.load_tokenizer(FOLDER)
    assert (FOLDER / "tokenizer/vocab.json").exists() and (FOLDER / "tokenizer/merges.txt").exists()
    assert tokenizer.model_max_length == 77 and 6000 < len(tokenizer) <= 9000
    words = "toy cat horse tower bear dog photo painting beach snow forest space grass red blue"
    assert [
        w for w in words.split() if len(tokenizer.encode(w, add_special_tokens=False)) != 1
    ] == []
    sentences = [*concept.OBJECT_TEMPLATES, *concept.STYLE_TEMPLATES]
    words = {w.strip(",") for sentence in sentences for w in sentence.format("toy").split()}
    assert [w for w in words if len(tokenizer.tokenize(w)) != 1 and "-" not in w] == []


def test_the_vae_keeps_photos_of_things_the_model_has_never_seen():
    parts = models.load(FOLDER)
    import torch

    errors = []
    for name in ("wood-toy", "rocking-horse", "teddy-bear"):
        photos = concept.load(FOLDER.parent / "concepts" / name)
        for view in concept.views(photos)[::2]:
            pixels = torch.from_numpy(concept.render_view(photos, view, parts.resolution))[None]
            with torch.no_grad():
                decoded = parts.vae.decode(parts.vae.encode(pixels).latent_dist.mean).sample
            errors.append(((decoded - pixels) / 2).pow(2).mean().item())
    assert -10 * np.log10(np.mean(errors)) > 20, "dB of peak signal over noise"


@pytest.mark.parametrize("name", ["wood-toy", "rocking-horse", "teddy-bear"])
def test_concepts_come_with_photos_held_out_sides_and_a_card(name):
    folder = FOLDER.parent / "concepts" / name
    photos = concept.load(folder)
    held_out = concept.load(folder / "held_out")
    assert (len(photos.photos), len(held_out.photos)) == (5, 2)
    pictures = [photo.image for photo in (*photos.photos, *held_out.photos)]
    assert {image.size for image in pictures} == {(512, 512)}
    assert len({image.tobytes() for image in pictures}) == 7
    card = json.loads((folder / "concept.json").read_text())
    assert card["placeholder_token"] == f"<{name}>" and card["licence"] and card["author"]
    tokenizer = pretrained.load_tokenizer(FOLDER)
    assert len(tokenizer.encode(card["initializer_token"], add_special_tokens=False)) == 1
    assert (folder / "README.md").read_text().strip()


def test_concept_photos_do_not_repeat_a_background():
    """The corners show the background: no two photos of a concept may share its color."""
    for name in ("wood-toy", "rocking-horse", "teddy-bear"):
        photos = concept.load(FOLDER.parent / "concepts" / name).photos
        corners = [np.asarray(p.image.crop((0, 0, 64, 64)), float).mean((0, 1)) for p in photos]
        gaps = [np.abs(a - b).max() for i, a in enumerate(corners) for b in corners[:i]]
        assert min(gaps) > 8, name


def test_image_is_drawn_in_color():
    """A sanity check of the decoder on one drawn picture, in this process."""
    from tiutils import inference

    image = inference.generate(models.load(FOLDER), "a red apple", num_inference_steps=10)[0]
    assert isinstance(image, Image.Image) and np.asarray(image).std() > 20


# The evaluator

# Run by a bare interpreter: transformers' own classes, with no word of ours.
JUDGE = """
import sys, numpy, torch, transformers
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
assert transformers.__version__.startswith(sys.argv[3]), transformers.__version__
model, report = CLIPModel.from_pretrained(sys.argv[1], output_loading_info=True)
assert not report["missing_keys"] and model.dtype == torch.float32
tokenizer = CLIPTokenizer.from_pretrained(sys.argv[1])
processor = CLIPImageProcessor.from_pretrained(sys.argv[1])
images = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
words = tokenizer(["a red toy", "two cats on the beach, na\u00efve"], padding=True, return_tensors="pt")
with torch.no_grad():
    answer = model(**words, pixel_values=processor(images, return_tensors="pt").pixel_values)
numpy.savez(sys.argv[2], images=answer.image_embeds, sentences=answer.text_embeds)
"""


def asked_by_transformers(program, path):
    program(JUDGE, str(FOLDER / "evaluator"), str(path))
    with np.load(path) as answer:
        return answer["images"], answer["sentences"]


def check_judge(asked, tolerance):
    """Our reader of the judge against what transformers said of the same pictures and sentences."""
    images, sentences = asked
    clip = clip_model.load(FOLDER / "evaluator")
    ours = clip.encode_images([Image.new("RGB", (64, 64), color) for color in ("red", "blue")])
    np.testing.assert_allclose(ours.numpy(), images, atol=tolerance)
    ours = clip.encode_text(["a red toy", "two cats on the beach, na\u00efve"])
    np.testing.assert_allclose(ours.numpy(), sentences, atol=tolerance)


def test_our_judge_sees_and_reads_as_transformers_does(tmp_path):
    def here(code, *arguments):
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments, ""], check=True)

    check_judge(asked_by_transformers(here, tmp_path / "here.npz"), 1e-5)


@pytest.mark.release
@pytest.mark.slow
def test_transformers_4_reads_the_same_judge(tmp_path):
    def old(code, *arguments):
        overlays.run_under("transformers-4.57", code, *arguments, "4.57")

    check_judge(asked_by_transformers(old, tmp_path / "old.npz"), 1e-4)


def test_the_judge_knows_places_and_colors_in_drawn_pictures():
    from tiutils import inference

    parts = models.load(FOLDER)
    clip = clip_model.bundled_with(parts)
    kinds = (
        ["a toy on the beach", "a toy in the snow", "a toy in space", "a toy on grass"],
        ["a toy on a red background", "a toy on a blue background", "a toy on a green background"],
    )
    for prompts in kinds:
        drawn = inference.generate(parts, prompts, num_inference_steps=15, seed=3)
        found = (clip.encode_images(drawn) @ clip.encode_text(prompts).T).argmax(dim=1)
        assert found.tolist() == list(range(len(prompts)))


def test_any_prompt_can_be_spelled_for_the_judge():
    tokenizer = pretrained.load_tokenizer(FOLDER, tokenizer_name=FOLDER / "evaluator")
    assert 2000 < len(tokenizer) < 4000
    for text in ("zyzzyva’s quokka", "ünïcode 漢字", "🧸"):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1]
        spelled = tokenizer.decode(ids, skip_special_tokens=True)
        assert spelled.replace(" ", "") == text.replace(" ", "")
