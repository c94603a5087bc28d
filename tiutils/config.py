"""Settings of a training run, which are the flags of `tiutils train`, and of generating pictures.

Names and meanings are those of diffusers' `textual_inversion.py`, so that a command from any tutorial works with the
program's name changed. Where a default differs from that script's, the help says so.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

from tiutils.errors import InputError

AS_THE_SCRIPT = {"norm_control": 0.0, "timestep_sampling": "uniform"}  # to compare like with like
NUM_TIMESTEPS = 1000  # of the noise schedule of every Stable Diffusion
MAX_IMAGES = 100_000  # of one prompt
MAX_STEPS = 999  # of the sampler
MAX_SEED = 2**63  # half of a batch's key, of 64 bits
MAX_GUIDANCE = 1000
LARGE_WIDTH = 768  # of the text encoder of Stable Diffusion 1.x; others' are wider, the bundled model's is 256
LR_SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
)  # fmt: skip


def option(
    default: Any,
    text: str,
    *,
    choices: tuple[str, ...] | None = None,
    script: Any = None,
    secret: bool = False,
    path: bool = False,
    metavar: tuple[str, ...] | None = None,
) -> Any:
    """A field with its help; `script` is the diffusers script's default where ours differs."""
    if script is not None:
        text += f" [differs from the diffusers script, where it is {script}]"
    metadata = {"help": text, "choices": choices, "path": path, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run; see `tiutils train --help` for each."""

    # what is taught, and to which model
    train_data_dir: str = option(
        "", "folder with 3 to 5 photos, or the id of a dataset on the Hub", path=True
    )
    placeholder_token: str = option("", "the new word, such as '<wood-toy>'; lower case is safest")
    initializer_token: str = option("", "a known word to start from, such as 'toy'; one token")
    initializer_phrase: str | None = option(
        None,
        "several words to start from, instead of --initializer_token; each of their tokens becomes one vector",
    )
    initializer_from_photos: bool = option(
        False,
        "start from what the model's word encoder sees in the photos, if it has one [as E4T, arXiv 2302.12228]; "
        "--initializer_token then serves only as the plain word for comparison",
    )
    learnable_property: str = option("object", "what the photos show", choices=("object", "style"))
    num_vectors: int = option(1, "number of vectors (rows of the embedding table) for the new word")
    pretrained_model_name_or_path: str | None = option(
        None,
        "model folder, .safetensors file, or Hub id; by default Stable Diffusion 1.5 with a GPU and access to the Hub, "
        "otherwise the bundled model",
        script="required",
        path=True,
    )
    revision: str | None = option(None, "branch, tag or commit of the model on the Hub")
    variant: str | None = option(None, "variant of the weight files, such as fp16")
    tokenizer_name: str | None = option(None, "a tokenizer other than the model's own", path=True)

    # photos
    resolution: int | None = option(
        None,
        "width and height of the training images in pixels; by default the model's own",
        script=512,
    )
    center_crop: bool = option(
        False,
        "use only the center square of each photo; by default three squares along its longer side "
        "[the script squashes photos instead]",
    )
    captions: bool = option(
        False,
        "train on captions from text files next to the photos, such as 1.txt for 1.jpg; {} stands for the word",
    )
    masked_loss: bool = option(
        False, "weight the loss at each pixel by the photo's alpha channel, if it has one"
    )
    repeats: int = option(
        100, "number of times an epoch repeats the photos; matters only with --num_train_epochs"
    )

    # how long and how fast
    num_train_epochs: int | None = option(
        None,
        "length of training in epochs; ignored if --max_train_steps is given",
        script="100, never used",
    )
    max_train_steps: int | None = option(
        None,
        "length of training in optimizer steps; 500 if --num_train_epochs is not given either",
        script=5000,
    )
    train_batch_size: int = option(
        4, "number of samples in one forward pass, per process", script=16
    )
    gradient_accumulation_steps: int = option(1, "number of forward passes in one optimizer step")
    learning_rate: float | None = option(
        None,
        "learning rate of AdamW, or the size of a turn with --optimizer directional; by default 5e-3 for the bundled "
        "model, 5e-4 for each sample of a step for a model of Stable Diffusion's width, as in the field's guide, and "
        "0.01 for a turn",
        script=1e-4,
    )
    scale_lr: bool = option(
        False, "multiply the learning rate by batch size × accumulation × processes"
    )
    lr_scheduler: str = option("constant", "schedule of the learning rate", choices=LR_SCHEDULERS)
    lr_warmup_steps: int | None = option(
        None,
        "number of linear warm-up steps; by default a tenth of the run; no effect with 'constant'",
        script=500,
    )
    lr_num_cycles: int = option(1, "number of cycles in cosine_with_restarts")
    optimizer: str = option(
        "adamw",
        "what moves the rows; 'directional' turns them and keeps their length "
        "[Directional Textual Inversion, arXiv 2512.13672]",
        choices=("adamw", "directional"),
        script="adamw, the only one",
    )
    direction_prior: float = option(
        1e-4,
        "with --optimizer directional: how strongly a row is pulled back to the direction it started in",
    )
    adam_beta1: float = option(0.9, "decay rate of AdamW's first moment")
    adam_beta2: float = option(0.999, "decay rate of AdamW's second moment")
    adam_weight_decay: float = option(1e-2, "weight decay of AdamW")
    adam_epsilon: float = option(1e-8, "epsilon of AdamW, which keeps it from dividing by zero")
    max_grad_norm: float | None = option(
        None, "clip gradients to this norm; by default they are not clipped"
    )
    norm_control: float = option(
        0.2,
        "fraction by which each step pulls a vector's norm toward that of the initializer's; 1 holds it there",
        script="none",
    )
    timestep_sampling: str = option(
        "noisy",
        "how noise levels are drawn; 'noisy' favors the high ones",
        choices=("uniform", "noisy"),
        script="uniform",
    )
    timestep_range: tuple[int, int] | None = option(
        None,
        "train on timesteps from LOW up to, but not including, HIGH; by default on all, 0 1000 "
        "[ZOODiP, arXiv 2503.14868, uses 500 900]",
        metavar=("LOW", "HIGH"),
    )
    average_rows: int = option(
        0,
        "learn the mean of the rows over about the last N steps; training itself goes on from the newest rows; "
        "0 learns the newest rows",
    )
    use_8bit_adam: bool = option(
        False, "use bitsandbytes' AdamW with 8-bit states; has an effect only from 4096 values up"
    )

    # when to stop, which step to keep
    early_stopping: bool = option(
        False,
        "stop when the loss on a fixed batch levels off, and keep the step where it was lowest",
    )
    early_stopping_steps: int = option(10, "measure the loss on the fixed batch every N steps")
    early_stopping_window: int = option(
        310,
        "stop when the loss has varied little over this many steps [value from the paper, arXiv 2302.04841]",
    )
    early_stopping_patience: int | None = option(
        None, "also stop when the loss on the fixed batch has not improved for N steps"
    )

    # device
    mixed_precision: str = option(
        "no", "number format of the frozen parts", choices=("no", "fp16", "bf16")
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    quantize: str | None = option(
        None,
        "store the weights of the U-Net's linear layers in fewer bits, using bitsandbytes",
        choices=("8bit", "4bit"),
    )
    fit: bool = option(
        False,
        "choose precision, micro-batches, checkpointing, and quantization so that the run fits into memory",
    )
    enable_xformers_memory_efficient_attention: bool = option(
        False, "use xFormers' attention instead of PyTorch's own"
    )
    capture: bool = option(
        False,
        "replay forward and backward pass as a CUDA graph: the same steps, but faster where launching kernels takes "
        "most of the time; one process only; measured for single steps, not yet for whole runs",
    )
    allow_tf32: bool = option(False, "allow TF32 matrix products on Ampere and later GPUs")
    deterministic: bool = option(
        False, "make runs on a GPU repeatable bit for bit, but slower; runs on a CPU always are"
    )
    dataloader_num_workers: int = option(
        0, "accepted, but has no effect: photos are encoded once, before training"
    )

    # what is written
    output_dir: str = option(
        "text-inversion-model", "folder for everything that the run writes", path=True
    )
    seed: int = option(0, "seed of all random numbers", script="none: different each time")
    save_steps: int = option(500, "write learned_embeds-steps-N.safetensors every N steps")
    checkpointing_steps: int = option(
        500, "write checkpoint-N/ every N steps, for --resume_from_checkpoint"
    )
    checkpoints_total_limit: int | None = option(
        None, "keep only this many checkpoints, the newest ones"
    )
    resume_from_checkpoint: str | None = option(
        None, "path of a checkpoint, or 'latest' for the newest one in --output_dir", path=True
    )
    save_as_full_pipeline: bool = option(False, "also write the whole model with the word in it")
    no_safe_serialization: bool = option(
        False, "write the learned word as PyTorch .bin instead of .safetensors"
    )
    validation_prompt: str | None = option(
        None, "prompt to draw during training; it should contain the new word"
    )
    num_validation_images: int = option(4, "number of pictures to draw at each validation")
    evaluator: str | None = option(
        None,
        "folder or Hub id of a CLIP model that scores the validation pictures; the bundled model has its own",
        path=True,
    )
    validation_steps: int = option(100, "draw the validation prompt every N steps")
    report_to: str | None = option(
        None,
        "log to 'tensorboard', 'wandb', 'comet_ml', or 'all' of these that are installed",
        script="tensorboard",
    )
    logging_dir: str = option("logs", "folder for the logs, inside --output_dir", path=True)
    push_to_hub: bool = option(False, "publish the learned word on the Hub when training is done")
    hub_model_id: str | None = option(
        None, "repository on the Hub; by default named after the output folder"
    )
    hub_token: str | None = option(
        None, "access token for the Hub; by default the one from `hf auth login`", secret=True
    )

    def __post_init__(self) -> None:
        # here, because no shell expands `~` in a file, in a notebook, or after a `=`
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["path"] and isinstance(value, str | os.PathLike):
                object.__setattr__(self, field.name, os.path.expanduser(value))
        if isinstance(self.timestep_range, list):  # from the command line or a file
            object.__setattr__(self, "timestep_range", tuple(self.timestep_range))

    @property
    def plain_word(self) -> str:
        """The known word that the new one is compared with, in the same prompts."""
        return self.initializer_phrase or self.initializer_token or self.learnable_property

    @property
    def optimizer_name(self) -> str:
        """The name of the optimizer's class, which checkpoints record."""
        if self.use_8bit_adam:
            return "AdamW8bit"
        return {"adamw": "AdamW", "directional": "Directional"}[self.optimizer]

    @property
    def samples_per_process(self) -> int:
        """Samples that one process contributes to an optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    def total_steps(self, num_photos: int, num_processes: int = 1) -> int:
        """Length of the run in optimizer steps: as set, or computed from epochs as in the diffusers script."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        if self.num_train_epochs is None:
            return 500
        batches = math.ceil(
            math.ceil(num_photos * self.repeats / self.train_batch_size) / num_processes
        )
        return self.num_train_epochs * math.ceil(batches / self.gradient_accumulation_steps)

    def warmup_steps(self, total_steps: int) -> int:
        """Steps of linear warm-up: as set, or a tenth of the run; 0 for the schedule without a warm-up."""
        if self.lr_scheduler == "constant":
            return 0
        return total_steps // 10 if self.lr_warmup_steps is None else self.lr_warmup_steps

    def with_learning_rate(self, width: int) -> TrainingConfig:
        """These settings with a learning rate that suits a text encoder of this width, if none is given.

        A step of AdamW moves each number of a row by the rate, so the same rate moves a row of 768 numbers further
        than one of 256. The large models' rate is that of the field's guide: 5e-4 for each sample of a step.
        """
        if self.learning_rate is not None:
            return self
        if self.optimizer == "directional":
            return dataclasses.replace(self, learning_rate=1e-2)
        if width < LARGE_WIDTH:
            return dataclasses.replace(self, learning_rate=5e-3)
        return dataclasses.replace(self, learning_rate=5e-4, scale_lr=True)

    def peak_learning_rate(self, num_processes: int = 1) -> float:
        """The learning rate after --scale_lr, before the schedule; `with_learning_rate` has set it.

        Raises:
            ValueError: it is not set.
        """
        if self.learning_rate is None:
            raise ValueError("no learning rate yet: with_learning_rate sets the model's")
        samples = self.samples_per_process * num_processes if self.scale_lr else 1
        return self.learning_rate * samples


def learning_rate_at(
    config: TrainingConfig, step: int, total_steps: int, num_processes: int = 1
) -> float:
    """The learning rate of a step, counted from 0: diffusers' six schedules, as functions without state."""
    peak = config.peak_learning_rate(num_processes)
    warmup, name = config.warmup_steps(total_steps), config.lr_scheduler
    if name == "constant":
        return peak
    if step < warmup:
        return peak * step / max(1, warmup)
    if name == "constant_with_warmup":
        return peak
    if name == "linear":
        return peak * max(0.0, (total_steps - step) / max(1, total_steps - warmup))
    progress = (step - warmup) / max(1, total_steps - warmup)
    if name == "cosine":
        return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    if name == "cosine_with_restarts":
        cycle = (config.lr_num_cycles * progress) % 1.0
        return 0.0 if progress >= 1.0 else peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * cycle)))
    lowest = 1e-7  # where diffusers' polynomial schedule ends; its power is 1
    return lowest if step > total_steps else lowest + (peak - lowest) * (1 - progress)


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are generated, in either framework.

    Attributes:
        num_images_per_prompt: images of each prompt.
        seed: of image 0 of each prompt; image k has seed + k.
        num_inference_steps: steps of the sampler.
        guidance_scale: strength of classifier-free guidance; 1 or less turns it off; the model's own if None.
        negative_prompt: what to steer away from.
        height: pixels; the model's own size if None.
        width: pixels; the model's own size if None.
        batch_size: images generated at once; only memory and speed depend on it.

    Raises:
        InputError: a setting cannot work; names it and what is allowed.
    """

    num_images_per_prompt: int = 1
    seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: float | None = None
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("num_images_per_prompt", "num_inference_steps", "batch_size"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
            if value > MAX_IMAGES:
                raise InputError(f"{name} is {value}; it must be {MAX_IMAGES} or less")
        if self.num_inference_steps > MAX_STEPS:
            raise InputError(
                f"num_inference_steps is {self.num_inference_steps}; it must be {MAX_STEPS} or less: a model has 1000 "
                f"noise levels, and 20 to 50 steps are enough"
            )
        if not 0 <= self.seed < MAX_SEED:
            raise InputError(f"seed is {self.seed}; it must be at least 0 and below {MAX_SEED}")
        scale = self.guidance_scale
        if scale is not None and not -MAX_GUIDANCE <= scale <= MAX_GUIDANCE:  # false for NaN, too
            raise InputError(
                f"guidance_scale is {scale}; it must be a number of at most {MAX_GUIDANCE}: 7.5 is usual, 1 or less "
                f"turns it off"
            )

    def size_for(self, models: Any) -> tuple[int, int]:
        """Height and width in pixels of a model's pictures; `models` are the parts in either framework.

        Raises:
            InputError: the U-Net cannot halve this size as often as it must.
        """
        factor = models.pixel_factor
        height, width = self.height or models.resolution, self.width or models.resolution
        for name, value in (("height", height), ("width", width)):
            if value < 1 or value % factor:
                nearest = max(factor, round(value / factor) * factor)
                raise InputError(
                    f"{name} is {value}; {models.name} draws multiples of {factor} pixels, for example {nearest}"
                )
        return height, width
