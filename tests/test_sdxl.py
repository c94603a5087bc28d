"""Stable Diffusion XL's kind of model, small and random: taught, drawn with, exported; beside stock diffusers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file
from small_model import save_small_sdxl

import tiutils
from tiutils import conditioning, models, token_embedding
from tiutils.cli import inspect
from tiutils.cli.main import main
from tiutils.io import checkpoints, embeddings, pretrained, run_folder
from tiutils.io.embeddings import LearnedEmbedding
from tiutils.publishing import model_card

PROMPT = "a photo of a <my-toy> on sand"
DRAWING = {"num_inference_steps": 3, "guidance_scale": 5.0}
HALVES = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return save_small_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


def flags_of(sdxl, photos, output_dir, **flags):
    flags = {
        "pretrained_model_name_or_path": sdxl, "train_data_dir": photos, "placeholder_token": "<my-toy>",
        "initializer_token": "toy", "num_vectors": 2, "max_train_steps": 6, "output_dir": output_dir,
    } | flags  # fmt: skip
    return {
        name: str(value) if name.endswith(("dir", "path")) else value
        for name, value in flags.items()
    }


def train(sdxl, photos, output_dir, **flags):
    return tiutils.train(tiutils.TrainingConfig(**flags_of(sdxl, photos, output_dir, **flags)))


@pytest.fixture(scope="module")
def result(sdxl, photos, tmp_path_factory):
    more = {"save_as_full_pipeline": True, "validation_prompt": PROMPT, "validation_steps": 3}
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(sdxl, photos, folder, num_validation_images=1, checkpointing_steps=3, **more)


def stock(folder):
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_word(sdxl, path):
    """A stock pipeline that was given the word in both text encoders, as the model card says."""
    pipe, halves = stock(sdxl), load_file(path)
    assert halves.keys() == HALVES.keys()
    for name, (encoder, tokenizer) in HALVES.items():
        parts = {"text_encoder": getattr(pipe, encoder), "tokenizer": getattr(pipe, tokenizer)}
        pipe.load_textual_inversion(halves[name], "<my-toy>", **parts)
    return pipe


# Conditioning


@pytest.mark.parametrize("prompt", ["", "a photo of a toy", "a cat in snow " * 40])
def test_prompts_are_encoded_as_in_stock_diffusers(sdxl, prompt):
    states, pooled = conditioning.encode(models.load(sdxl), [prompt, "a dog"])
    expected, _, expected_pooled, _ = stock(sdxl).encode_prompt([prompt, "a dog"])
    assert torch.equal(states, expected) and torch.equal(pooled, expected_pooled)
    assert states.shape == (2, 77, 32 + 48) and pooled.shape == (2, 24)


def test_an_empty_negative_prompt_is_zeros_as_in_stock_diffusers(sdxl):
    parts, pipe = models.load(sdxl), stock(sdxl)
    for prompt in ("", "a dog"):
        _, states, _, pooled = pipe.encode_prompt("a toy", negative_prompt=prompt or None)
        ours = conditioning.encode_negative(parts, prompt)
        assert torch.equal(ours[0], states) and torch.equal(ours[1], pooled)


def test_the_unet_is_told_what_stock_diffusers_tells_it(sdxl):
    parts, pipe = models.load(sdxl), stock(sdxl)
    told = conditioning.encode(parts, ["a toy", "a dog"])
    noisy, timesteps = torch.randn(2, 4, 12, 16), torch.tensor([7, 800])
    sizes = pipe._get_add_time_ids((24, 32), (0, 0), (24, 32), torch.float32, told[1].shape[-1])
    more = {"text_embeds": told[1], "time_ids": sizes.repeat(2, 1)}
    expected = pipe.unet(noisy, timesteps, told[0], added_cond_kwargs=more).sample
    assert torch.equal(conditioning.predict(parts, noisy, timesteps, *told), expected)
    assert not torch.allclose(
        conditioning.predict(parts, noisy, timesteps, told[0], 0 * told[1]), expected
    )


# Words


def test_a_word_is_two_rows_side_by_side_and_goes_again(sdxl):
    parts = models.load(sdxl)
    tables = [token_embedding.table_of(parts, k) for k in (0, 1)]
    toy = parts.tokenizer.encode("toy", add_special_tokens=False)[0]
    word = token_embedding.add_placeholder(parts, "<t>", initializer_token="toy", num_vectors=2)
    rows = token_embedding.rows_of(parts, word)
    assert torch.equal(rows[1], torch.cat([table[toy] for table in tables]))
    plain = conditioning.encode(parts, ["a toy toy in snow"])[0]
    assert torch.equal(conditioning.encode(parts, ["a <t> in snow"])[0], plain)
    rows.data[:, 32:] += 1
    states = conditioning.encode(parts, ["a <t> in snow"])[0]
    assert torch.equal(states[..., :32], plain[..., :32]), "the other text encoder's columns"
    assert not torch.allclose(states[..., 32:], plain[..., 32:])
    token_embedding.remove_placeholder(parts, word)
    for encoder, table, tokenizer in zip(
        parts.text_encoders, tables, parts.tokenizers, strict=True
    ):
        assert torch.equal(encoder.get_input_embeddings().weight, table)
        assert "<t>" not in tokenizer.get_added_vocab()


def test_the_gradient_is_that_of_two_whole_trainable_tables(sdxl, photos, tmp_path):
    """Against the plain way: both tables resized and trainable, in stock transformers."""
    from accelerate import Accelerator

    from tiutils import concept, diffusion, training

    config = tiutils.TrainingConfig(**flags_of(sdxl, photos, tmp_path, train_batch_size=2))
    parts = models.load(sdxl)
    word = token_embedding.add_placeholder(
        parts, "<my-toy>", initializer_token="toy", num_vectors=2
    )
    session = training.prepare(parts, word, concept.load(photos), config, Accelerator(cpu=True))
    diffusion.losses_at(parts, session.dataset, 0, 0, 2).mean().backward()
    plain = token_embedding.merged(parts)
    tables = [encoder.get_input_embeddings().weight for encoder in plain.text_encoders]
    for table in tables:
        table.requires_grad_(True)
    diffusion.losses_at(plain, session.dataset, 0, 0, 2).mean().backward()
    expected = torch.cat([table.grad[-2:] for table in tables], dim=1)
    assert torch.allclose(session.rows.grad, expected, rtol=1e-4, atol=1e-7)
    assert all(expected[:, half].abs().sum() > 0 for half in (slice(32), slice(32, None)))


def test_each_half_is_held_at_the_length_of_its_own_initializer(sdxl, photos, tmp_path):
    run = train(sdxl, photos, tmp_path / "run", norm_control=1.0)
    toy = token_embedding.vector_of(models.load(sdxl), "toy").split((32, 48))
    halves = embeddings.read(run.embedding_path).by_encoder.values()
    for half, usual in zip(halves, (start.norm().item() for start in toy), strict=True):
        assert np.linalg.norm(half, axis=1) == pytest.approx(usual, rel=1e-5)


# A run


def test_both_rows_are_learned_and_nothing_else(sdxl, result):
    assert np.isfinite(result.losses).all() and result.steps == 6
    before, after = models.load(sdxl), models.load(result.output_dir)
    learned = embeddings.read(result.embedding_path)
    assert learned.by_encoder.keys() == HALVES.keys() and learned.widths == (32, 48)
    toy = before.tokenizer.encode("toy", add_special_tokens=False)[0]
    for old, new, half in zip(
        before.text_encoders, after.text_encoders, learned.by_encoder.values(), strict=True
    ):
        table = old.get_input_embeddings().weight
        longer = new.get_input_embeddings().weight
        assert torch.equal(longer[:-2], table) and np.array_equal(longer[-2:].detach(), half)
        assert np.abs(half - table[toy].detach().numpy()).min() > 0
    pairs = zip(
        (*before.text_encoders, before.unet, before.vae),
        (*after.text_encoders, after.unet, after.vae),
        strict=True,
    )
    for old, new in pairs:
        there = new.state_dict()
        for name, tensor in old.state_dict().items():
            assert name.endswith("token_embedding.weight") or torch.equal(tensor, there[name]), name


def test_stock_diffusers_draws_the_word_as_we_do(sdxl, result):
    """From the word's file and from the whole pipeline."""
    ours = np.asarray(tiutils.generate(result.models, PROMPT, seed=0, **DRAWING)[0], int)
    states, pooled = conditioning.encode(result.models, [PROMPT])
    for pipe in (with_word(sdxl, result.embedding_path), stock(result.output_dir)):
        found, _, found_pooled, _ = pipe.encode_prompt(PROMPT)
        assert torch.equal(found, states) and torch.equal(found_pooled, pooled)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="linspace"
        )
        latents = torch.randn((1, 4, 16, 16), generator=torch.manual_seed(0))
        theirs = np.asarray(pipe(PROMPT, latents=latents, **DRAWING).images[0], int)
        assert np.abs(theirs - ours).max() <= 1
    loaded = models.load(sdxl)
    tiutils.load_embedding(loaded, result.embedding_path)
    again = np.asarray(tiutils.generate(loaded, PROMPT, seed=0, **DRAWING)[0], int)
    assert np.array_equal(again, ours)


@pytest.mark.slow
def test_a_process_without_tiutils_knows_the_word_in_both_encoders(sdxl, result):
    code = f"""if True:
        import sys
        from diffusers import StableDiffusionXLPipeline
        from safetensors.torch import load_file
        pipe = StableDiffusionXLPipeline.from_pretrained(sys.argv[1], add_watermarker=False)
        word = load_file(sys.argv[2])
        for name, (encoder, tokenizer) in {HALVES!r}.items():
            encoder, tokenizer = getattr(pipe, encoder), getattr(pipe, tokenizer)
            pipe.load_textual_inversion(word[name], "<my-toy>", text_encoder=encoder, tokenizer=tokenizer)
            ids = tokenizer(["<my-toy>", "<my-toy>_1"], add_special_tokens=False).input_ids
            rows = encoder.get_input_embeddings().weight[[number for number, in ids]]
            assert rows.equal(word[name]), name
        assert not any(name.split(".")[0] == "tiutils" for name in sys.modules)
        print("known")"""
    command = [sys.executable, "-c", code, str(sdxl), str(result.embedding_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "known"


def test_a_resumed_run_learns_the_very_same_rows(sdxl, photos, result, tmp_path):
    shutil.copytree(result.output_dir / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    again = train(sdxl, photos, tmp_path / "run", resume_from_checkpoint="latest")
    assert again.losses == result.losses[3:]
    rows = [embeddings.read(run.embedding_path).rows for run in (again, result)]
    assert np.array_equal(*rows)
    state = checkpoints.load(result.output_dir / "checkpoint-6")
    assert state.tensors["rows"].shape == (2, 80)


def test_micro_batches_and_early_stopping(sdxl, photos, tmp_path):
    more = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    more |= {"early_stopping": True, "early_stopping_steps": 1, "early_stopping_window": 2}
    run = train(sdxl, photos, tmp_path / "run", learning_rate=0.05, **more)
    assert run.best_step == min(run.stopping.losses, key=run.stopping.losses.get)
    assert np.array_equal(embeddings.read(run.embedding_path).rows, run.stopping.best_rows)


@pytest.mark.slow
@pytest.mark.release
def test_two_processes_learn_the_same_rows(sdxl, photos, tmp_path):
    rows = []
    for number in (1, 2):
        flags = flags_of(sdxl, photos, tmp_path / str(number), train_batch_size=4 // number)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        command = [sys.executable, *torchrun, "-m", "tiutils", "train", *words]
        subprocess.run(command, check=True, capture_output=True)
        rows.append(embeddings.read(tmp_path / str(number)).rows)
    np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=1e-6)


# Number formats


def test_the_vae_computes_in_float32_where_half_precision_overflows(sdxl):
    half = models.load(sdxl, dtype=torch.float16)
    assert half.vae_dtype == torch.float32 and half.vae.dtype == torch.float16
    assert models.load(sdxl, dtype=torch.bfloat16).vae_dtype == torch.bfloat16
    half.vae.register_to_config(force_upcast=False)  # as in VAEs that were trained further for it
    assert half.vae_dtype == torch.float16


# Commands


def test_what_is_written_is_read_again_and_described(sdxl, result, tmp_path):
    text = inspect.describe(result.embedding_path, str(sdxl))
    assert "32 (clip_l), 2 vectors of width 48 (clip_g)" in text and "SDXL" in text
    assert text.count("nearest") == 4 and "text_encoder_2 of" in text
    word = embeddings.read(result.embedding_path)
    for name in ("word.safetensors", "word.bin"):
        again = embeddings.read(inspect.convert(result.embedding_path, tmp_path / name))
        assert np.array_equal(again.rows, word.rows)


def test_generate_and_merge_from_the_command_line(sdxl, result, tmp_path, capsys):
    model = ["--pretrained_model_name_or_path", str(sdxl)]
    out, word = ["--output_dir", str(tmp_path / "out")], str(result.embedding_path)
    few = ["--num_images", "1", "--num_inference_steps", "2"]
    assert main(["generate", "--embedding", word, "--prompt", PROMPT, *out, *few, *model]) == 0
    assert main(["merge", word, "--output_dir", str(tmp_path / "merged"), *model]) == 0
    states = conditioning.encode(result.models, [PROMPT])[0]
    assert torch.equal(stock(tmp_path / "merged").encode_prompt(PROMPT)[0], states)
    weights = load_file(tmp_path / "merged" / "text_encoder_2" / "model.safetensors")
    assert all(name.startswith(("text_model.", "text_projection.")) for name in weights)
    assert (tmp_path / "merged" / "tokenizer_2" / "merges.txt").is_file()


def test_the_code_on_the_card_loads_both_halves(sdxl, result, monkeypatch):
    files = {"learned_embeds.safetensors": result.embedding_path}
    card = model_card.model_card(files, "me/toy", run_folder.read_record(result.output_dir))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    *lines, drawing = code.replace('"sdxl"', repr(str(sdxl))).strip().splitlines()
    assert drawing == 'pipeline("a photo of a <my-toy>").images[0].save("picture.png")'
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file: str(files[file]))
    names = {}
    exec("\n".join(lines), names)
    found, _, pooled, _ = names["pipeline"].encode_prompt(PROMPT)
    expected = conditioning.encode(result.models, [PROMPT])
    assert torch.equal(found, expected[0]) and torch.equal(pooled, expected[1])


def test_evaluate_scores_it(result, capsys):
    few = ["--num_images", "1", "--num_inference_steps", "1", "--prompt", "a {} on sand"]
    assert main(["evaluate", str(result.output_dir), *few]) == 0
    assert "photos | before | after" in capsys.readouterr().out
    assert (result.output_dir / "report.html").is_file()


# Bad input: one clear line, before weights are loaded

WRONG = {
    "one encoder's vectors": (
        {"": 32},
        r"for 1 text encoder \(32 wide\), but .* has 2 text encoders \(32 and 48 wide",
    ),
    "one half": ({"clip_l": 32}, "for 1 text encoder"),
    "swapped": ({"clip_l": 48, "clip_g": 32}, r"48 and 32 wide\), but .* \(32 and 48 wide"),
}


def word_of(path, widths):
    first, *others = {
        name: np.ones((1, width), np.float32) for name, width in widths.items()
    }.items()
    learned = LearnedEmbedding("<w>", first[1], text_encoder=first[0], others=dict(others))
    if first[0] and not others:  # as other programs leave it out
        from safetensors.numpy import save_file

        save_file({first[0]: first[1]}, path)
        return str(path)
    return str(embeddings.write(path, learned))


@pytest.fixture
def no_loading(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(models, "load", refuse)
    monkeypatch.setattr("tiutils.runs.run.load", refuse)


def one_line(capsys):
    *said, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith(("loading ", "tiutils: there is no TPU")) for line in said), said
    return error


@pytest.mark.parametrize("kind", WRONG)
def test_a_word_for_other_encoders(sdxl, kind, tmp_path, capsys, no_loading):
    widths, expected = WRONG[kind]
    word = word_of(tmp_path / "w.safetensors", widths)
    model = ["--pretrained_model_name_or_path", str(sdxl)]
    assert main(["generate", "--embedding", word, "--prompt", "a <w>", *model]) == 2
    assert re.search(expected, one_line(capsys))


def test_a_pair_for_a_model_with_one_encoder(small_model, tmp_path, capsys, no_loading):
    word = word_of(tmp_path / "w.safetensors", {"clip_l": 32, "clip_g": 48})
    model = ["--pretrained_model_name_or_path", str(small_model)]
    assert main(["generate", "--embedding", word, "--prompt", "a <w>", *model]) == 2
    assert "for 2 text encoders (32 and 48 wide), but" in one_line(capsys)


def change(folder, part, **options):
    path = folder / part / "config.json" if part else folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def without_first_encoder(folder):
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    change(folder, "", text_encoder=[None, None], tokenizer=[None, None])


def another_vocabulary(folder):
    path = folder / "tokenizer_2" / "tokenizer.json"
    content = json.loads(path.read_text())
    ids = content["model"]["vocab"]
    ids["toy</w>"], ids["cat</w>"] = ids["cat</w>"], ids["toy</w>"]
    path.write_text(json.dumps(content))


MODELS = {
    "refiner": (without_first_encoder, "Stable Diffusion XL's refiner"),
    "inpainting": (lambda folder: change(folder, "unet", in_channels=9), "an inpainting model"),
    "no second tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "lacks tokenizer_2"),
    "another vocabulary": (another_vocabulary, "different vocabularies"),
    "too wide": (lambda folder: change(folder, "text_encoder_2", hidden_size=64), r"gives 32 \+ 64"),
    "another text encoder": (lambda folder: change(folder, "text_encoder_2", model_type="t5"), "'t5'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_is_not_whole_or_of_another_kind(
    sdxl, photos, kind, tmp_path, capsys, no_loading
):
    harm, expected = MODELS[kind]
    harm(copy := shutil.copytree(sdxl, tmp_path / "copy"))
    flags = flags_of(copy, photos, tmp_path / "run")
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert main(["train", *words]) == 2
    assert re.search(expected, one_line(capsys)) and not (tmp_path / "run").exists()


def test_another_tokenizer_cannot_serve_both(sdxl, small_model):
    with pytest.raises(tiutils.InputError, match=r"names one tokenizer, but .* has 2"):
        pretrained.load_tokenizers(sdxl, tokenizer_name=str(small_model / "tokenizer"))


def test_jax_refuses_it_by_name(sdxl, photos, tmp_path, capsys):
    pytest.importorskip("jax")
    flags = flags_of(sdxl, photos, tmp_path / "run") | {"framework": "flax"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert main(["train", *words]) == 2
    assert "--framework flax cannot use" in one_line(capsys)
