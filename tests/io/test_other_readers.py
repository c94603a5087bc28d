"""What we write, read by other programs' own readers.

diffusers' is asked in `test_embedding_files` and `test_embedding_formats`, torch's restricted loader, which is A1111's
and ComfyUI's, in the latter. Of the programs that people draw with, InvokeAI alone is on PyPI in a form whose reader
can be had without all the rest; A1111, ComfyUI, kohya, ai-toolkit and OneTrainer are not there, so what they write is
laid out by hand in `embedding_samples`, from their sources.
"""

from __future__ import annotations

import embedding_samples as made
import numpy as np
import pytest
from overlays import run_under

from tiutils.cli.inspect import convert_for
from tiutils.io.embeddings import LearnedEmbedding, write, write_a1111

# The importer stands before the reader and refuses what the reader would take; beside itself it needs a web server's
# settings, a scanner of pickles and readers of other models' files, which no .safetensors file of ours meets.
IMPORT = """
import importlib.util, logging, pathlib, sys, types
from diffusers import DiffusionPipeline  # before the names below are taken
from diffusers.models.modeling_utils import ModelMixin
root = importlib.util.find_spec("invokeai").submodule_search_locations[0]
def absent(name, **names):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(names)
loggers = types.SimpleNamespace(get_logger=logging.getLogger)
absent("invokeai.backend.util", __path__=[f"{root}/backend/util"])
absent("invokeai.backend.util.logging", InvokeAILogger=loggers)
absent("invokeai.app.services.config.config_default", get_config=None)
absent("invokeai.backend.quantization.gguf.loaders", WrappedGGUFReader=None, gguf_sd_loader=None)
absent("invokeai.backend.quantization.sdnq.loaders", sdnq_sd_loader=None)
absent("gguf", GGUFValueType=None)
absent("picklescan.scanner", scan_file_path=None)
absent("blake3", blake3=None)
absent("onnxruntime", InferenceSession=int)
from invokeai.backend.model_manager.configs import textual_inversion as configs
from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
for kind, path in zip(sys.argv[1::2], sys.argv[2::2]):
    config = getattr(configs, f"TI_File_{kind}_Config")
    found = ModelOnDisk(pathlib.Path(path))
    assert config._file_looks_like_embedding(found), path
    try:
        config._validate_base(found)
        print("taken")
    except configs.NotAMatchError as error:
        print(error)
assert not any(name.split(".")[0] == "tiutils" for name in sys.modules)
"""
READ = """
import sys, types, importlib.util
import numpy
root = importlib.util.find_spec("invokeai").submodule_search_locations[0]
util = types.ModuleType("invokeai.backend.util")  # without the settings and the web server it begins with
util.__path__ = [f"{root}/backend/util"]
sys.modules[util.__name__] = util
from invokeai.backend.textual_inversion import TextualInversionModelRaw
for path in sys.argv[1:]:
    found = TextualInversionModelRaw.from_checkpoint(path)
    halves = [half.numpy() for half in (found.embedding, found.embedding_2) if half is not None]
    numpy.savez(path + ".npz", *halves)
assert not any(name.split(".")[0] == "tiutils" for name in sys.modules)
"""


@pytest.mark.release
@pytest.mark.slow
def test_invokeai_reads_what_we_write(tmp_path):
    one, two = made.vectors(2, 768), made.vectors(2, 1280)
    learned = LearnedEmbedding("<toy>", one, {"steps": "9", "seed": "7"})
    pair = LearnedEmbedding("<toy>", one, {"steps": "9"}, others={"clip_g": two})
    written = {
        write(tmp_path / "toy.safetensors", learned): [one],
        write(tmp_path / "toy.bin", learned, safe_serialization=False): [one],
        write_a1111(tmp_path / "toy.pt", learned): [one],
        write(tmp_path / "pair.safetensors", pair): [two, one],  # it asks for the larger half first
    }
    run_under("invokeai", READ, *map(str, written))
    for path, expected in written.items():
        with np.load(f"{path}.npz") as read:
            found = [read[name] for name in read.files]
        assert len(found) == len(expected), path.name
        for theirs, ours in zip(found, expected, strict=True):
            np.testing.assert_array_equal(theirs, ours, err_msg=path.name)


COMPEL = """
import sys
import torch
from compel import Compel, DiffusersTextualInversionManager
from diffusers import StableDiffusionPipeline

model, word = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model)
pipe.load_textual_inversion(word)
prompt = "a photo of a <toy> on sand"
expected = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
for manager in (None, DiffusersTextualInversionManager(pipe)):
    compel = Compel(pipe.tokenizer, pipe.text_encoder, textual_inversion_manager=manager)
    print((compel(prompt) - expected).abs().max().item())
assert not any(name.split(".")[0] == "tiutils" for name in sys.modules)
"""


@pytest.mark.release
@pytest.mark.slow
def test_compel_needs_a_manager_for_a_word_of_several_vectors(small_model, tmp_path):
    """What docs/engines.md says of it: without one it uses the first vector alone, and says nothing."""
    vectors = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    word = write(tmp_path / "toy.safetensors", LearnedEmbedding("<toy>", vectors))
    alone, managed = map(float, run_under("invokeai", COMPEL, str(small_model), str(word)).split())
    assert managed == 0 and alone > 0.1
    one = write(tmp_path / "one.safetensors", LearnedEmbedding("<toy>", vectors[:1]))
    printed = run_under("invokeai", COMPEL, str(small_model), str(one))
    assert list(map(float, printed.split())) == [0, 0]


@pytest.mark.release
@pytest.mark.slow
def test_invokeai_imports_what_is_converted_for_it(tmp_path):
    """And refuses diffusers' own form, as `engines` says."""
    asked = []
    for kind, width in (("SD1", 768), ("SD2", 1024)):
        for count in (1, 4):
            learned = LearnedEmbedding(f"<toy-{width}-{count}>", made.vectors(count, width))
            stored = write(tmp_path / f"{kind}-{count}.safetensors", learned)
            path, _ = convert_for(stored, "invokeai", tmp_path)
            asked += [(kind, path, "taken")]
            asked += [(kind, stored, f"unrecognized token dimension {count}")]
    pair = LearnedEmbedding(
        "<pair>", made.vectors(2, 768), others={"clip_g": made.vectors(2, 1280)}
    )
    path, _ = convert_for(write(tmp_path / "SDXL.safetensors", pair), "invokeai", tmp_path)
    asked += [("SDXL", path, "taken")]
    printed = run_under("invokeai", IMPORT, *(str(word) for one in asked for word in one[:2]))
    assert printed.splitlines() == [expected for *_, expected in asked]
