"""The command line: `tiutils train | generate | evaluate | push | inspect | convert | blend | merge | doctor`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tiutils.cli import console, flags, quiet_libraries
from tiutils.cli.flags import (
    EXIT_INPUT,
    Parser,
    add_framework_flag,
    add_model_flags,
    add_sampling_flags,
    add_training_flags,
    training_config,
)
from tiutils.errors import InputError, first_line, out_of_memory, printable
from tiutils.io import files, progress, signals

logger = logging.getLogger("tiutils")
EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130
# prompts that put the thing where it was never photographed
PLACES = ("a {} on the beach", "a {} in the snow", "a {} in the forest", "two {} on grass")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    with console.guarded() as (stdout, _):
        options = build_parser().parse_args(arguments)
        quiet_libraries()
        try:
            with (
                signals.handled(signals.interrupt),
                warnings_on_stderr(),
                progress.silence(options.quiet),
            ):
                flags.check(options)
                status = options.run(options)
        except InputError as error:
            print(f"tiutils: {printable(str(error))}", file=sys.stderr)
            return EXIT_INPUT
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except Exception as error:
            if (found := out_of_memory(error)) is None:
                raise
            advice = "close other programs, draw fewer pictures at once, or take a smaller model"
            print(f"tiutils: out of memory ({first_line(found)[:120]}): {advice}", file=sys.stderr)
            return EXIT_INPUT
        stdout.flush()
        if stdout.error is not None and stdout.error.errno not in console.GONE:
            print(f"tiutils: could not print ({stdout.error.strerror})", file=sys.stderr)
            return status or EXIT_FAILED
        return status


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = Parser(prog="tiutils", description="Textual Inversion: teach a model a new word.")
    commands = parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="learn a word from photos")
    train.add_argument(
        "--config",
        metavar="FILE",
        help="read flags from a TOML or JSON file; flags on the command line take precedence",
    )
    add_training_flags(train)
    add_framework_flag(train)
    # of older scripts and launchers, accepted without effect
    train.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    train.add_argument("--validation_epochs", type=int, help=argparse.SUPPRESS)
    train.set_defaults(run=run_train)

    generate = commands.add_parser("generate", help="draw prompts with learned words")
    generate.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE[=WORD]",
        help="learned word: a file, a run's folder, or a Hub id; =WORD renames it, or chooses one of a file that has "
        "several; may be repeated",
    )
    generate.add_argument(
        "--prompt", action="append", required=True, help="what to draw; may be repeated"
    )
    generate.add_argument(
        "--output_dir", default="pictures", help="folder for the PNG files (default: %(default)s)"
    )
    add_model_flags(generate)
    add_sampling_flags(generate, num_images=4)
    add_framework_flag(generate)
    generate.set_defaults(run=run_generate)

    evaluate = commands.add_parser(
        "evaluate", help="draw photos | before | after and score a word, or compare several runs"
    )
    evaluate.add_argument("run_dirs", nargs="+", help="output folder of a `tiutils train` run")
    evaluate.add_argument(
        "--held_out",
        metavar="DIR",
        help="folder with photos to compare with "
        "(default: held_out/ in the photos' folder, if there)",
    )
    evaluate.add_argument(
        "--prompt", action="append", help="prompt with {} in place of the word; may be repeated"
    )
    evaluate.add_argument(
        "--evaluator",
        metavar="CLIP",
        help="folder or Hub id of a CLIP model for further scores (default: the model's own)",
    )
    evaluate.add_argument(
        "--output_dir",
        default="comparison",
        help="folder for the comparison of several runs (default: %(default)s)",
    )
    evaluate.add_argument(
        "--train_data_dir",
        metavar="DIR",
        help="folder with the photos, if they have moved since training",
    )
    evaluate.add_argument(
        "--no-scores", "--no_scores", action="store_true", help="only draw the picture"
    )
    add_model_flags(evaluate)
    note = "; scores use at least 8 pictures of each word"
    add_sampling_flags(evaluate, num_images=2, num_steps=15, note=note)
    evaluate.set_defaults(run=run_evaluate)

    push = commands.add_parser(
        "push", help="publish a learned word and its card on the Hub, privately by default"
    )
    push.add_argument("run_dir", help="output folder of a `tiutils train` run")
    push.add_argument("--hub_model_id", help="repository on the Hub (default: the folder's name)")
    push.add_argument(
        "--hub_token", help="access token for the Hub (default: the one from `hf auth login`)"
    )
    push.add_argument("--public", action="store_true", help="make the repository public")
    push.add_argument("--license", help="the Hub's name of a license, such as cc-by-4.0")
    push.add_argument(
        "--picture",
        action="append",
        default=[],
        metavar="PNG",
        help="picture for the card, such as one from `tiutils generate`; may be repeated",
    )
    push.add_argument(
        "--save_as_full_pipeline",
        action="store_true",
        help="also upload the whole model; needs a run that was trained with this flag",
    )
    push.set_defaults(run=run_push)

    inspect = commands.add_parser("inspect", help="show what is in a learned word's file")
    inspect.add_argument(
        "source", metavar="FILE", help="file, run's folder, or Hub id of a learned word"
    )
    add_model_flags(inspect)
    inspect.set_defaults(run=run_inspect)

    convert = commands.add_parser("convert", help="write a learned word in another form")
    convert.add_argument(
        "source", metavar="IN", help="file, run's folder, or Hub id of a learned word"
    )
    convert.add_argument(
        "target",
        metavar="OUT",
        nargs="?",
        help="new file: .safetensors, .bin, or .pt (A1111); omit it with --for, which chooses the name",
    )
    convert.add_argument(
        "--for",
        dest="engine",
        metavar="PROGRAM",
        help="write the file that this program needs, and print what to put in its prompt: diffusers, comfyui, "
        "a1111, invokeai, or sd.cpp",
    )
    convert.add_argument(
        "--output_dir",
        metavar="DIR",
        help="folder for the file that --for writes (default: the current one)",
    )
    convert.add_argument("--word", help="word to convert, if the file has several")
    convert.add_argument("--token", metavar="WORD", help="new name for the word")
    convert.add_argument("--license", help="license to record in the file, such as cc-by-4.0")
    convert.set_defaults(run=run_convert)

    blend = commands.add_parser("blend", help="combine several words into one, with weights")
    blend.add_argument(
        "words", nargs="+", metavar="FILE[=WEIGHT]", help="learned word and its weight (default: 1)"
    )
    blend.add_argument("target", metavar="OUT", help="new file: .safetensors, .bin, or .pt (A1111)")
    blend.add_argument(
        "--token",
        default="<blend>",
        metavar="WORD",
        help="name of the new word (default: %(default)s)",
    )
    blend.set_defaults(run=run_blend)

    merge = commands.add_parser(
        "merge",
        help="write a whole model that includes learned words, for programs that cannot load them",
    )
    merge.add_argument(
        "embedding",
        nargs="*",
        metavar="FILE[=WORD]",
        help="learned words, as in `generate`; with none, a single-file model is written as a folder",
    )
    merge.add_argument(
        "--output_dir", required=True, metavar="FOLDER", help="new folder for the model"
    )
    add_model_flags(merge)
    merge.set_defaults(run=run_merge)

    doctor = commands.add_parser(
        "doctor", help="check what is installed, what fits, and what to change"
    )
    doctor.set_defaults(run=run_doctor)
    for command in commands.choices.values():
        command.add_argument("--quiet", action="store_true", help="show no progress on stderr")
    return parser


def backend(name: str, framework: str) -> Any:
    """A module of the framework: `tiutils.<name>` (but `tiutils.runs.run`), or `tiutils.flax.<name>`.

    Raises:
        InputError: JAX is not installed.
    """
    if framework == "pytorch":
        return importlib.import_module("tiutils.runs.run" if name == "run" else f"tiutils.{name}")
    missing = [p for p in ("jax", "flax", "optax") if importlib.util.find_spec(p) is None]
    if missing:
        raise InputError(
            f"--framework flax needs {', '.join(missing)}: pip install 'tiutils[flax]'"
        )
    return importlib.import_module(f"tiutils.flax.{name}")


def run_train(options: argparse.Namespace) -> int:
    """`tiutils train`."""
    if options.validation_epochs is not None:
        logger.warning("--validation_epochs has no effect: use --validation_steps")
    config = training_config(options)
    if os.environ.get("RANK", "0") == "0":  # importing the libraries alone takes seconds
        progress.say(f"loading {config.pretrained_model_name_or_path or 'the model'}")
    result = backend("run", options.framework).train(config)
    if not result.is_main_process:
        return EXIT_OK
    kept = f"{result.best_step} of " if result.best_step else ""
    print(f"{result.placeholder.token} after {kept}{result.steps} steps: {result.embedding_path}")
    print("\n".join(next_steps(result.placeholder.token, result.embedding_path)))
    if result.stopped is None:
        return EXIT_OK
    print(f"tiutils: {result.stopped}", file=sys.stderr)
    return EXIT_FAILED if result.diverged else EXIT_INTERRUPTED


def next_steps(word: str, embedding: str | Path) -> list[str]:
    """What to do next with a learned word: lines with commands to copy."""
    run = str(Path(embedding).parent)
    commands = {
        "compare": ["tiutils", "evaluate", run],
        "draw": ["tiutils", "generate", "--embedding", run, "--prompt", PLACES[0].format(word)],
        "other programs": ["tiutils", "convert", str(embedding), "--for", "PROGRAM"],
    }
    return [
        f"  {what + ':':<16}{printable(shlex.join(command))}" for what, command in commands.items()
    ]


def run_generate(options: argparse.Namespace) -> int:
    """`tiutils generate`."""
    from tiutils.figures import output

    sampling = flags.sampling_config(options)
    folder = files.given(options.output_dir, "--output_dir")
    words = flags.words(options.embedding)
    files.check_writable(folder, "--output_dir")
    inference, models = (backend(name, options.framework) for name in ("inference", "models"))
    chosen = flags.model(options, [source for source, _ in words])
    chosen["name"] = chosen["name"] or models.default_model()
    flags.check_words(chosen, words, options.prompt)
    device = {"device": models.best_device()} if options.framework == "pytorch" else {}
    parts = models.load(**chosen, **device)
    for source, word in words:
        inference.load_embedding(parts, source, word)

    total, names, done = len(options.prompt) * options.num_images, output.numbered(folder), 0
    with progress.bar(total, "drawing", "picture") as bar:

        def keep(number: int, image: Any) -> None:
            nonlocal done
            prompt = options.prompt[number // options.num_images]
            path = output.save_new(
                image, folder, names, alt=prompt if prompt.strip() else "Drawn without a prompt."
            )
            done = number + 1
            tqdm.write(f"{path} {prompt}", file=sys.stdout)
            sys.stdout.flush()
            bar.update()

        try:
            inference.generate(
                parts, options.prompt, sampling, batch_size=parts.at_once, on_image=keep
            )
        except KeyboardInterrupt:
            logger.warning("stopped: %d of %d pictures are in %s", done, total, folder)
            raise
    return EXIT_OK


def run_evaluate(options: argparse.Namespace) -> int:
    """`tiutils evaluate`."""
    from tiutils.evaluation import report

    label = "side by side:" if len(options.run_dirs) > 1 else "photos | before | after:"
    config = report.EvaluationConfig(
        photos=options.train_data_dir,
        held_out=options.held_out,
        model=flags.model(options, [], or_none=True),
        evaluator=options.evaluator,
        output_dir=options.output_dir,
        sampling=flags.sampling_config(options),
        scores=not options.no_scores,
    )
    made = report.evaluate(
        options.run_dirs,
        options.prompt or PLACES,
        config,
        on_image=lambda path: print(f"{label:<25} {path}", flush=True),
    )
    if made.word_scores:
        print("\n" + "\n\n".join(map(report.as_text, made.word_scores)))
    is_one = len(options.run_dirs) == 1
    print()
    if is_one:
        print(f"the learned word:         {made.words[0]}")
    if made.page:
        print(f"open in a browser:        {made.page}")
    if is_one:
        print("what to open next:        notebooks/00_start_here.ipynb")
    return EXIT_OK


def run_push(options: argparse.Namespace) -> int:
    """`tiutils push`."""
    from tiutils.publishing import publish

    print(
        publish.publish(
            options.run_dir,
            options.hub_model_id,
            token=options.hub_token,
            public=options.public,
            license=options.license,
            pictures=options.picture,
            full_pipeline=options.save_as_full_pipeline,
        )
    )
    return EXIT_OK


def run_inspect(options: argparse.Namespace) -> int:
    """`tiutils inspect`."""
    from tiutils.cli import inspect

    print(inspect.describe(options.source, **flags.model(options, [options.source])))
    return EXIT_OK


def run_convert(options: argparse.Namespace) -> int:
    """`tiutils convert`."""
    from tiutils.cli import inspect

    names = {"word": options.word, "token": options.token, "license": options.license}
    if options.engine is not None:
        folder = options.output_dir or options.target
        path, said = inspect.convert_for(options.source, options.engine, folder, **names)
        print("\n".join([str(path), *said]))
        return EXIT_OK
    if options.target is None:
        raise InputError("convert IN OUT: OUT is missing; give a file, or --for PROGRAM")
    print(inspect.convert(options.source, options.target, **names))
    return EXIT_OK


def run_blend(options: argparse.Namespace) -> int:
    """`tiutils blend`."""
    from tiutils.cli import inspect

    print(inspect.blend_files(options.words, options.target, options.token))
    return EXIT_OK


def run_merge(options: argparse.Namespace) -> int:
    """`tiutils merge`."""
    from tiutils import inference, models, token_embedding

    folder = files.given(options.output_dir, "--output_dir")
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{str(folder)!r} already exists: give a new folder")
    words = flags.words(options.embedding)
    chosen = flags.model(options, [source for source, _ in words])
    chosen["name"] = chosen["name"] or models.default_model()
    flags.check_words(chosen, words)
    files.check_writable(folder, "--output_dir")
    parts = models.load(**chosen)
    for source, word in words:
        inference.load_embedding(parts, source, word)
    progress.say(f"writing the whole model to {folder}")
    models.save(token_embedding.merged(parts), folder)
    print(folder)
    if words:
        print(f"in the prompt write: {printable(', '.join(word for _, word in words))}")
    return EXIT_OK


def run_doctor(options: argparse.Namespace) -> int:
    """`tiutils doctor`."""
    from tiutils.cli import doctor

    return doctor.main()


class LineHandler(logging.Handler):
    """Writes each record on a line of its own, even while a progress bar is shown; none twice."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record to stderr."""
        line = record.getMessage()
        if line not in self.said:  # a prompt may be read at every validation
            self.said.add(line)
            tqdm.write(f"tiutils: {line}", file=sys.stderr)


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show this package's warnings, one per line; of several processes, only the first one's."""
    handler = LineHandler()
    handler.setLevel(logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
