"""The command line: `tiutils train | generate | evaluate | push | inspect | convert | blend | merge | doctor`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
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
# Prompts that put the thing where it was never photographed.
PLACES = ("a {} on the beach", "a {} in the snow", "a {} in the forest", "two {} on grass")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 something given is wrong."""
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
        "--config", metavar="FILE", help="read flags from a TOML or JSON file; flags given here win"
    )
    add_training_flags(train)
    add_framework_flag(train)
    # flags of older scripts and launchers: let through, though there is nothing for them to do
    train.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    train.add_argument("--validation_epochs", type=int, help=argparse.SUPPRESS)
    train.set_defaults(run=run_train)

    generate = commands.add_parser("generate", help="draw prompts with learned words")
    generate.add_argument(
        "--embedding",
        action="append",
        default=[],
        metavar="FILE[=WORD]",
        help="a learned word: a file, a run's folder or a Hub id, under a new name; of a file with "
        "several words all, or the one named; may repeat",
    )
    generate.add_argument(
        "--prompt", action="append", required=True, help="what to draw; may repeat"
    )
    generate.add_argument("--output_dir", default="pictures", help="folder for the PNG files")
    add_model_flags(generate)
    add_sampling_flags(generate, num_images=4)
    add_framework_flag(generate)
    generate.set_defaults(run=run_generate)

    evaluate = commands.add_parser(
        "evaluate", help="photos | before | after, and scores; of several runs, side by side"
    )
    evaluate.add_argument("run_dirs", nargs="+", help="output folder of `tiutils train`")
    evaluate.add_argument(
        "--held_out", metavar="DIR", help="photos to compare with; held_out/ beside the photos"
    )
    evaluate.add_argument(
        "--prompt", action="append", help="prompts with {} for the word; may repeat"
    )
    evaluate.add_argument(
        "--evaluator",
        metavar="CLIP",
        help="folder or Hub id of a CLIP model that judges, too (default: the model's own)",
    )
    evaluate.add_argument(
        "--output_dir", default="comparison", help="folder for a comparison of several runs"
    )
    evaluate.add_argument(
        "--train_data_dir",
        metavar="DIR",
        help="the photos, if they are not where the run found them",
    )
    evaluate.add_argument(
        "--no-scores", "--no_scores", action="store_true", help="draw the picture only"
    )
    add_model_flags(evaluate)
    add_sampling_flags(evaluate, num_images=2, num_steps=15)
    evaluate.set_defaults(run=run_evaluate)

    push = commands.add_parser(
        "push", help="publish a learned word and its card on the Hub, for you alone to see"
    )
    push.add_argument("run_dir", help="output folder of `tiutils train`")
    push.add_argument("--hub_model_id", help="repository; the folder's name by default")
    push.add_argument("--hub_token", help="access token; that of `hf auth login` by default")
    push.add_argument("--public", action="store_true", help="let everyone see it")
    push.add_argument("--license", help="the Hub's name of a licence, such as cc-by-4.0")
    push.add_argument(
        "--picture",
        action="append",
        default=[],
        metavar="PNG",
        help="for the card, such as one of `tiutils generate`; may repeat",
    )
    push.add_argument(
        "--save_as_full_pipeline",
        action="store_true",
        help="upload the whole model too, of a run that was trained with this flag",
    )
    push.set_defaults(run=run_push)

    inspect = commands.add_parser("inspect", help="what a file with a learned word holds")
    inspect.add_argument("source", metavar="FILE", help="a file, a run's folder or a Hub id")
    add_model_flags(inspect)
    inspect.set_defaults(run=run_inspect)

    convert = commands.add_parser("convert", help="write a learned word in another form")
    convert.add_argument("source", metavar="IN", help="a file, a run's folder or a Hub id")
    convert.add_argument(
        "target",
        metavar="OUT",
        nargs="?",
        help=".safetensors, .bin or .pt (A1111); not with --for, which names the file itself",
    )
    convert.add_argument(
        "--for",
        dest="engine",
        metavar="PROGRAM",
        help="write the file that a program wants, and say what to write in its prompt: diffusers, comfyui, "
        "a1111, invokeai or sd.cpp",
    )
    convert.add_argument(
        "--output_dir", metavar="DIR", help="folder for the file of --for (default: this one)"
    )
    convert.add_argument("--word", help="which one, if the file has several")
    convert.add_argument("--token", metavar="WORD", help="a new name for the word")
    convert.add_argument("--license", help="what others may do with it, such as cc-by-4.0")
    convert.set_defaults(run=run_convert)

    blend = commands.add_parser("blend", help="make one word of several, weighed")
    blend.add_argument(
        "words", nargs="+", metavar="FILE[=WEIGHT]", help="a learned word and its weight, 1 if none"
    )
    blend.add_argument(
        "target", metavar="OUT", help="a new file: .safetensors, .bin or .pt (A1111)"
    )
    blend.add_argument(
        "--token", default="<blend>", metavar="WORD", help="the new word (%(default)s)"
    )
    blend.set_defaults(run=run_blend)

    merge = commands.add_parser(
        "merge", help="write a whole model with learned words in it, for programs that load none"
    )
    merge.add_argument(
        "embedding",
        nargs="*",
        metavar="FILE[=WORD]",
        help="learned words, as in `generate`; none makes a folder of a model in one file",
    )
    merge.add_argument("--output_dir", required=True, metavar="FOLDER", help="a new folder")
    add_model_flags(merge)
    merge.set_defaults(run=run_merge)

    doctor = commands.add_parser("doctor", help="what is installed, what fits, what to change")
    doctor.set_defaults(run=run_doctor)
    for command in commands.choices.values():
        command.add_argument("--quiet", action="store_true", help="show no progress on stderr")
    return parser


def backend(name: str, framework: str) -> Any:
    """The framework's own module: `tiutils.<name>`, where a run's is `tiutils.runs.run`, or `tiutils.flax.<name>`.

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
        logger.warning(
            "--validation_epochs has nothing to do: --validation_steps says when to draw"
        )
    result = backend("run", options.framework).train(training_config(options))
    if not result.is_main_process:
        return EXIT_OK
    kept = f"{result.best_step} of " if result.best_step else ""
    print(f"{result.placeholder.token} after {kept}{result.steps} steps: {result.embedding_path}")
    from tiutils.io import engines

    print("\n".join(engines.lines(result.placeholder.token, result.embedding_path)))
    if result.stopped is None:
        return EXIT_OK
    print(f"tiutils: {result.stopped}", file=sys.stderr)
    return EXIT_FAILED if result.diverged else EXIT_INTERRUPTED


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
            logger.warning("stopped: %d of %d pictures are drawn, in %s", done, total, folder)
            raise
    return EXIT_OK


def run_evaluate(options: argparse.Namespace) -> int:
    """`tiutils evaluate`."""
    from tiutils.evaluation import report

    label = "side by side:" if len(options.run_dirs) > 1 else "photos | before | after:"
    made = report.evaluate(
        options.run_dirs,
        options.prompt or PLACES,
        photos=options.train_data_dir,
        held_out=options.held_out,
        model=flags.model(options, [], or_none=True),
        judge=options.evaluator,
        output_dir=options.output_dir,
        scores=not options.no_scores,
        on_image=lambda path: print(f"{label:<25} {path}", flush=True),
        sampling=flags.sampling_config(options),
    )
    if made.word_scores:
        print("\n" + "\n\n".join(map(report.as_text, made.word_scores)))
    if len(options.run_dirs) == 1:
        print(f"\nthe learned word:         {made.words[0]}")
        print(f"all on one page:          {made.page}")
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
        raise InputError(f"{str(folder)!r} is there already: give a new folder")
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
    """Writes each record as a line of its own, also while a progress bar is shown; none twice."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record to stderr."""
        line = record.getMessage()
        if line not in self.said:  # the same prompt may be read at every validation
            self.said.add(line)
            tqdm.write(f"tiutils: {line}", file=sys.stderr)


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show this package's warnings, each as one line; of several processes only the first speaks."""
    handler = LineHandler()
    handler.setLevel(logging.WARNING if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
