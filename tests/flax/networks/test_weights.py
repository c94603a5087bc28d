"""Weight files: every layout that PyTorch's libraries write is read; what is not this network's is named."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tiutils.errors import InputError
from tiutils.flax.networks import weights
from tiutils.flax.networks.text_encoder import TextEncoder
from tiutils.flax.networks.vae import VAE

TEXT = {
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VAE_CONFIG = {"block_out_channels": [8], "norm_num_groups": 2}


def build():
    return TextEncoder(TEXT)


def tensors_for(build, seed=0):
    """Random float16 tensors for a module, named and laid out as in torch's files."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights.nnx.state(build()))[0]:
        *steps, last = weights._name(path).split(".")
        value = generator.normal(size=leaf.shape).astype(np.float16)
        if last == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = ".".join([*steps, "bias" if last == "bias" else "weight"])
        tensors[name] = np.ascontiguousarray(value)
    return tensors


@pytest.fixture
def tensors():
    return tensors_for(build)


@pytest.fixture
def reference(tmp_path_factory, tensors):
    """The text encoder read from one plain file."""
    folder = tmp_path_factory.mktemp("reference")
    save_file(tensors, folder / "model.safetensors")
    return weights.load_into(build, folder)


def same(module, other):
    pairs = zip(jax.tree.leaves(module), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def save_shards(tensors, folder, stem, index):
    names = sorted(tensors)
    files = {f"{stem}-0000{k + 1}-of-00002.safetensors": names[k::2] for k in range(2)}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    where = {name: file for file, part in files.items() for name in part}
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_values_are_the_files(tensors, reference):
    query = tensors["encoder.layers.0.self_attn.q_proj.weight"]
    (layer,) = reference.encoder.layers
    assert np.array_equal(layer.self_attn.q_proj.kernel, query.T.astype(np.float32))
    assert len(jax.tree.leaves(reference)) == len(tensors)


def test_prefix_and_constants_make_no_difference(tensors, reference, tmp_path):
    tensors["embeddings.position_ids"] = np.arange(77)
    renamed = {f"text_model.{name}": value for name, value in tensors.items()}
    more = {"logit_scale": np.ones(1), "text_projection.weight": np.ones((8, 8))}
    save_file(renamed | more, tmp_path / "model.safetensors")
    assert same(weights.load_into(build, tmp_path), reference)


@pytest.mark.parametrize("stem", weights.STEMS)
def test_variants_and_shards(tensors, reference, tmp_path, stem):
    save_file(tensors, tmp_path / f"{stem}.fp16.safetensors")
    assert same(weights.load_into(build, tmp_path, variant="fp16"), reference)
    with pytest.raises(InputError, match=rf"has {stem}.fp16.safetensors, where"):
        weights.load_into(build, tmp_path)
    with pytest.raises(InputError, match="with the variant 'ema'"):
        weights.load_into(build, tmp_path, variant="ema")
    save_shards(tensors, tmp_path, stem, f"{stem}.safetensors.index.json")
    assert same(weights.load_into(build, tmp_path), reference)
    save_shards(tensors, tmp_path, f"{stem}.ema", f"{stem}.safetensors.index.ema.json")
    assert same(weights.load_into(build, tmp_path, variant="ema"), reference)


def test_bfloat16_files_and_modules(tensors, reference, tmp_path):
    halves = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
    save_file(halves, tmp_path / "model.safetensors")
    as_float = weights.load_into(build, tmp_path)
    as_half = weights.load_into(lambda: TextEncoder(TEXT, dtype=jnp.bfloat16), tmp_path)
    assert same(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), as_half), as_float)
    assert same(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), reference), as_half)


def test_old_names_and_pointwise_convolutions_of_a_vae(tmp_path):
    tensors = tensors_for(lambda: VAE(VAE_CONFIG))
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    reference = weights.load_into(lambda: VAE(VAE_CONFIG), tmp_path)
    old = {}
    for name, value in tensors.items():
        for was, now in weights.OLD_NAMES.items():
            name = name.replace(f".attentions.0.{now}.", f".attentions.0.{was}.")
        is_pointwise = "quant_conv.weight" in name or "query.weight" in name
        old[name] = value[:, :, None, None] if is_pointwise else value
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(weights.load_into(lambda: VAE(VAE_CONFIG), tmp_path), reference)


def test_old_flax_folders_are_read(tensors, reference, tmp_path):
    def nested(build, names):
        tree = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(weights.nnx.state(build))[0]:
            *steps, last = names(weights._name(path)).split(".")
            branch = tree
            for step in steps:
                branch = branch.setdefault(step, {})
            branch[last] = np.asarray(leaf)
        return serialization.msgpack_serialize(tree)

    (tmp_path / "flax_model.msgpack").write_bytes(nested(reference, lambda n: f"text_model.{n}"))
    assert same(weights.load_into(build, tmp_path), reference)

    folder = tmp_path / "vae"
    folder.mkdir()
    save_file(tensors_for(lambda: VAE(VAE_CONFIG)), folder / "model.safetensors")
    vae = weights.load_into(lambda: VAE(VAE_CONFIG), folder)
    (folder / "model.safetensors").unlink()

    def old_name(name):  # down_blocks_0.resnets_0, and query where it is to_q today
        for was, now in weights.OLD_NAMES.items():
            name = name.replace(f".attentions.0.{now}.", f".attentions.0.{was}.")
        return weights.re.sub(r"\.(\d+)", r"_\1", name)

    (folder / "diffusion_flax_model.msgpack").write_bytes(nested(vae, old_name))
    assert same(weights.load_into(lambda: VAE(VAE_CONFIG), folder), vae)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("final_layer_norm.weight"), "lacks final_layer_norm.weight;"),
        (lambda t: [t.pop(n) for n in sorted(t)[:5]], "lacks .*, .*, .* and 2 more"),
        (lambda t: t.update(surplus=np.ones(3)), "more than config.json asks for: surplus;"),
        (
            lambda t: t.update({"final_layer_norm.bias": np.ones(9)}),
            r"final_layer_norm.bias in .* has shape \(9,\), which does not fit the \(8,\)",
        ),
        (
            lambda t: t.update({"encoder.layers.0.mlp.fc1.weight": np.ones((8, 12))}),
            r"mlp.fc1.weight in .* has shape \(8, 12\)",
        ),
    ],
)
def test_what_is_not_this_networks_is_named(tensors, tmp_path, change, message):
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        weights.load_into(build, tmp_path)


def test_pickles_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"is empty, where model\.safetensors or"):
        weights.load_into(build, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(InputError, match=r"has pytorch_model.bin.*tiutils.models.save"):
        weights.load_into(build, tmp_path)


def test_an_index_names_nothing_outside_its_folder(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    for name in ("../model.safetensors", "gone.safetensors"):
        index = {"weight_map": {"final_layer_norm.bias": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match=r"names the file .* which is not in"):
            weights.load_into(build, folder)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_is_an_input_error(tensors, tmp_path, data):
    kind = data.draw(st.sampled_from(["model.safetensors", "flax_model.msgpack"]))
    save_file(tensors, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    if kind == "flax_model.msgpack":
        whole = serialization.msgpack_serialize({"final_layer_norm": {"bias": np.ones(8)}})
    content = data.draw(
        st.binary(max_size=64)
        | st.integers(0, len(whole) - 1).map(lambda size: whole[:size])
        | st.binary(min_size=1, max_size=9).map(lambda head: head + whole[len(head) :])
    )
    if content == whole:
        return
    (tmp_path / kind).write_bytes(content)
    try:
        with pytest.raises(InputError):
            weights.load_into(build, tmp_path)
    finally:
        (tmp_path / kind).unlink()


def test_the_host_holds_one_tensor_beside_the_result(tmp_path):
    wide = TEXT | {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4}
    save_file(tensors_for(lambda: TextEncoder(wide)), tmp_path / "model.safetensors")
    tracemalloc.start()
    try:
        module = weights.load_into(lambda: TextEncoder(wide), tmp_path)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(module))
    assert total > 30 * 2**20  # in tensors of 2 MiB or less
    assert peak - now < 8 * 2**20


def test_the_bundled_model_is_read_as_it_is_stored():
    from tiutils.io import pretrained

    folder = pretrained.BUNDLED_MODEL / "text_encoder"
    config = pretrained.read_config(pretrained.BUNDLED_MODEL, "text_encoder")
    module = weights.load_into(lambda: TextEncoder(config), folder)
    stored = load_file(folder / "model.safetensors")
    table = stored["text_model.embeddings.token_embedding.weight"]
    assert np.array_equal(module.embeddings.token_embedding.embedding, table.astype(np.float32))
