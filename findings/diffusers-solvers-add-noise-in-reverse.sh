#!/usr/bin/env bash
# Training mixes noise in with a scheduler's add_noise. A pipeline often carries a fast solver (DPM-Solver++, UniPC, DEIS), and
# the training loop might use that one: every scheduler has the method, and in the solvers' source a comment speaks of training.
# You might expect the noise of DDPMScheduler, since the betas are the same. A fresh solver adds it in reverse, with no message:
# timestep 0 gets the noise of 999. Its timesteps run from high to low; its sigmas, until set_timesteps makes others, run from
# low to high; and add_noise looks a timestep's place up in the first and takes that place in the second.
# One picture, drawn with the same scheduler to see how training goes, changes the noise of all steps after it: the 980
# timesteps that are not among the picture's 20 get the lowest of its 20 levels. And after a picture made from a picture no timestep
# gets any noise (DEIS: hardly any), because add_noise then goes by the pipeline's last step and not by the timesteps.
# DDPM, DDIM, and PNDM are not affected, and DDPMScheduler.from_config(pipeline.scheduler.config) is right in every case.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.23.0 diffusers==0.42.1
"$folder/venv/bin/python" - 2> "$folder/log" <<'PYTHON' || { cat "$folder/log" >&2; exit 1; }
import warnings
from importlib.metadata import version

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers import StableDiffusionImg2ImgPipeline as FromPicture
from diffusers import StableDiffusionPipeline as FromText

print(*(f"{name} {version(name)}" for name in ("torch", "diffusers")), sep=", ")
betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
published = PNDMScheduler(**betas, steps_offset=1, skip_prk_steps=True).config  # as in Stable Diffusion's folders
shown, every = [0, 250, 500, 750, 999], torch.arange(1000)
said = []
handler = diffusers.utils.logging.logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
diffusers.utils.logging.add_handler(handler)

torch.manual_seed(0)
blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
size = {"block_out_channels": (8,), "norm_num_groups": 4, "sample_size": 8}
unet = UNet2DConditionModel(cross_attention_dim=16, layers_per_block=1, **blocks, **size)
models = {"unet": unet, "vae": AutoencoderKL(latent_channels=4, **size), "text_encoder": None, "tokenizer": None}
models |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
states = torch.zeros(1, 4, 16)


def draw(kind, scheduler, **options):
    """One picture in 20 steps from a tiny random model, with the scheduler that training uses too."""
    pipeline = kind(scheduler=scheduler, **models)
    pipeline.set_progress_bar_config(disable=True)
    prompts = {"prompt_embeds": states, "negative_prompt_embeds": states}
    pipeline(num_inference_steps=20, output_type="latent", **prompts, **options)


def mixed(scheduler):
    """How much noise and how much picture add_noise mixes at each of the 1000 timesteps."""
    zeros, ones = torch.zeros(1000, 1), torch.ones(1000, 1)
    said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        noise, picture = scheduler.add_noise(zeros, ones, every), scheduler.add_noise(ones, zeros, every)
    assert not caught and not said, (caught, said)
    return noise.flatten(), picture.flatten()


thing = torch.randn(256, generator=torch.Generator().manual_seed(1))
kept, off = DDPMScheduler(**betas).alphas_cumprod.sqrt(), (1 - DDPMScheduler(**betas).alphas_cumprod).sqrt()


def learned(scheduler):
    """A word learned from pictures that are the thing and a little chance: how much of the thing it holds, at best 1.

    No network: for such pictures the best guess of the noise is a formula, in which the word stands for their mean.
    """
    generator = torch.Generator().manual_seed(2)
    word = torch.zeros(256, requires_grad=True)
    optimizer = torch.optim.Adam([word], lr=0.02)
    for _ in range(400):
        timesteps = torch.randint(1000, (64,), generator=generator)
        noise, chance = torch.randn(2, 64, 256, generator=generator)
        noisy = scheduler.add_noise(thing + 0.5 * chance, noise, timesteps)
        a, b = kept[timesteps, None], off[timesteps, None]
        guess = b * (noisy - a * word) / (0.25 * a**2 + b**2)
        (guess - noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(word.detach() @ thing / (thing @ thing))


def report(when, noise, share):
    some = ", ".join(f"{float(noise[timestep]):.3f}" for timestep in shown)
    print(f"  {when:20} noise at {', '.join(map(str, shown))}: {some}; the word holds {share:.2f} of the thing")


right, _ = mixed(DDPMScheduler(**betas))
for name in ("DDPM", "DDIM", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"):
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(published)
    print(f"{name}Scheduler")
    fresh, _ = mixed(scheduler)
    shares = [learned(scheduler)]
    report("fresh", fresh, shares[0])
    draw(FromText, scheduler, height=8, width=8)
    after, _ = mixed(scheduler)
    shares.append(learned(scheduler))
    report("after a picture", after, shares[1])
    draw(FromPicture, scheduler, image=torch.zeros(1, 3, 8, 8), strength=0.5)
    last, picture = mixed(scheduler)
    shares.append(learned(scheduler))
    report("after one from it", last, shares[2])
    if name in ("DDPM", "DDIM", "PNDM"):
        assert torch.equal(fresh, right) and torch.equal(after, right) and torch.equal(last, right)
        assert all(abs(share - 1) < 0.05 for share in shares), shares
        continue
    lowest = int((after == after.min()).sum())
    print(f"  timesteps at the lowest of {len(after.unique())} levels after a picture: {lowest} of 1000")
    assert torch.allclose(fresh, right.flip(0), atol=1e-5) and not torch.allclose(fresh, right, atol=0.1)
    assert len(after.unique()) == 20 and lowest == 981, (len(after.unique()), lowest)
    assert len(last.unique()) == 1 and float(last[0]) < 0.05 and float(picture[0]) > 0.99, (last[0], picture[0])
    assert all(abs(share - 1) > 0.2 for share in shares), shares
    again, _ = mixed(DDPMScheduler.from_config(scheduler.config))
    assert torch.equal(again, right)
print("add_noise said nothing")
print("as described: these solvers' add_noise is upside down at first, and otherwise wrong after a picture")
PYTHON
