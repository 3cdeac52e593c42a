"""GPT and Llama are the same mathematics as in Hugging Face's transformers; its folders come back bit for bit.

Models are made from small awkward configs, every number in them drawn: at zeros of biases and ones of norms, mistakes
would hide.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face import transformers

from functrain import config as configs
from functrain import losses, trained
from functrain.cli import main
from functrain.models import huggingface, torch_layout

hf = transformers()
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
torch.set_num_threads(1)

pytestmark = pytest.mark.oracle

GPT2 = {"vocab_size": 53, "n_positions": 19, "n_embd": 24, "n_layer": 3, "n_head": 3}
LLAMA = {"vocab_size": 53, "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 6}
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt2 untied, relu, narrow": lambda: hf.GPT2Config(
        **GPT2, n_inner=17, activation_function="relu", tie_word_embeddings=False, layer_norm_epsilon=1e-3
    ),
    "llama": lambda: hf.LlamaConfig(**LLAMA),
    "llama grouped, tied, biases": lambda: hf.LlamaConfig(
        **LLAMA, num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3
    ),
    "llama one key head, wide, stretched": lambda: hf.LlamaConfig(
        **LLAMA, num_key_value_heads=1, head_dim=10, rope_parameters=STRETCHED
    ),
}
LENGTH = 13


def made(name, dtype="float32"):
    """Theirs, every number drawn; dropout off."""
    config = CONFIGS[name]()
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, array in model.named_parameters():
            centre = 1.0 if "norm" in path or "ln_" in path else 0.0
            array.copy_(centre + 0.2 * torch.randn(array.shape, generator=generator))
    return model.to(getattr(torch, dtype)).eval()


def ours_of(theirs):
    """Our model with their weights: (model, params)."""
    model = huggingface.described(theirs.config.to_dict()).sized((LENGTH,), theirs.config.vocab_size)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    names = model.huggingface_names()
    tensors = {name: a.detach().numpy() for name, a in theirs.state_dict().items() if name in names.values()}
    return model, torch_layout.from_torch(names, tensors, params, state, model.as_is)[0]


def logits_of(model, params, *given):
    """The model's logits, compiled: op by op takes longer."""
    return jax.jit(lambda params, *given: model.apply(params, {}, *given)[0])(params, *given)


def tokens(rows=3, seed=1):
    return np.random.default_rng(seed).integers(0, GPT2["vocab_size"], (rows, LENGTH))


def close(a, b, bound):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= bound * max(np.abs(b).max(), 1e-3), np.abs(a - b).max()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name):
    """Float32: logits to 5e-6 and gradients to 1e-5, of the largest; as many parameters."""
    theirs = made(name)
    model, params = ours_of(theirs)
    assert sum(a.size for a in jax.tree.leaves(params)) == sum(a.numel() for a in theirs.parameters())
    x = tokens()

    def loss(params):
        logits, _ = model.apply(params, {}, x[:, :-1])
        mean = losses.cross_entropy(logits, x[:, 1:])
        return mean.total / mean.count, logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    wanted = theirs(torch.tensor(x[:, :-1])).logits
    cost = torch.nn.functional.cross_entropy(wanted.reshape(-1, wanted.shape[-1]), torch.tensor(x[:, 1:].reshape(-1)))
    cost.backward()
    close(logits, wanted.detach(), 5e-6)
    close(value, cost.detach(), 5e-6)
    found = torch_layout.to_torch(model.huggingface_names(), gradients, {}, model.as_is)
    parameters = dict(theirs.named_parameters())
    assert found.keys() == parameters.keys()
    for path, gradient in found.items():
        close(gradient, parameters[path].grad, 1e-5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_in_float64(name, float64):
    """To 1e-12 of the largest for GPT-2; Llama's angles are float32 there, and so are its squares."""
    theirs = made(name, "float64")
    model, params = ours_of(theirs)
    logits = logits_of(model, params, tokens())
    with torch.no_grad():
        close(logits, theirs(torch.tensor(tokens())).logits, 1e-12 if name.startswith("gpt2") else 5e-6)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_the_left_and_on_the_right(name):
    """Rows of 13, 9 and 4 tokens, the padding on either side: the logits of the tokens are those of transformers."""
    theirs = made(name)
    model, params = ours_of(theirs)
    x, lengths = tokens(), np.array([[13], [9], [4]])
    for mask in (np.arange(LENGTH) >= LENGTH - lengths, np.arange(LENGTH) < lengths):
        places = np.maximum(np.cumsum(mask, 1) - 1, 0)
        with torch.no_grad():
            wanted = theirs(
                torch.tensor(x), attention_mask=torch.tensor(mask.astype(int)), position_ids=torch.tensor(places)
            ).logits
        logits = logits_of(model, params, x, mask.astype(np.int32))
        close(np.asarray(logits)[mask], wanted.numpy()[mask], 5e-6)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["gpt2", "llama grouped, tied, biases", "llama one key head, wide, stretched"])
def test_cached_decoding_is_the_full_forward(name):
    """Prompts padded on the left, then token by token: the logits of the whole at once."""
    model, params = ours_of(made(name))
    x, lengths = jnp.asarray(tokens()), np.array([[6], [5], [1]])
    segments = jnp.asarray(np.concatenate([np.arange(6) >= 6 - lengths, np.ones((3, LENGTH - 6), bool)], 1), jnp.int32)
    whole = logits_of(model, params, x, segments)
    step = jax.jit(lambda state, *given: model.apply(params, state, *given))
    first, state = step(model.remember(3, LENGTH), x[:, :6], segments[:, :6])
    rest = []
    for i in range(6, LENGTH):
        logits, state = step(state, x[:, i : i + 1])
        rest.append(logits)
    cached = jnp.concatenate([first, *rest], 1)
    real = np.asarray(segments) != 0
    close(np.asarray(cached)[real], np.asarray(whole)[real], 2e-6)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_is_apart(name):
    """Two sequences in a row give what each gives alone."""
    model, params = ours_of(made(name))
    x = tokens(1)
    logits = logits_of(model, params, x, np.array([[1] * 5 + [2] * 8]))
    alone = [logits_of(model, params, part) for part in (x[:, :5], x[:, 5:])]
    close(logits, jnp.concatenate(alone, 1), 2e-6)


def write_text(path):
    path.write_text("".join(chr(97 + i * i % 23) for i in range(4000)))


TOML = """
[task]
kind = "language"
[model]
kind = "huggingface"
folder = "{folder}"
dropout = 0.0
[data]
kind = "text"
path = "{text}"
block = 12
batch_size = 8
[train]
steps = {steps}
[optimizer]
kind = "sgd"
peak_lr = {rate}
"""


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in CONFIGS), ("gpt2", "bfloat16")])
def test_a_folder_is_read_and_written_bit_for_bit(name, dtype, tmp_path):
    """Read as a run's model and its start, exported untouched: the same bytes of config.json and of the weights."""
    theirs = made(name, dtype)
    theirs.config.dtype = getattr(torch, dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    text = (tmp_path / "theirs" / "config.json").read_text()
    # In an order and with blanks of its own, as files on the hub have them.
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(dict(reversed(json.loads(text).items())), indent=3))
    found = configs.parse(
        huggingface.HuggingFace, configs.Source({"kind": "huggingface", "folder": str(tmp_path / "theirs")})
    ).found()
    model = found.sized((LENGTH,), theirs.config.vocab_size)
    assert huggingface.config_text(model) == (tmp_path / "theirs" / "config.json").read_text()
    given = safetensors.load_file(tmp_path / "theirs" / "model.safetensors")
    names = model.huggingface_names()
    wanted = jax.eval_shape(model.init, jax.random.key(0))
    params, state = torch_layout.from_torch(names, given, *wanted, model.as_is)
    back = torch_layout.to_torch(names, params, state, model.as_is)
    back = {path: a.astype(huggingface.dtype(model.huggingface)) for path, a in back.items()}
    data = safetensors.save(back, {"format": "pt"})
    assert data == (tmp_path / "theirs" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["gpt2", "llama grouped, tied, biases"])
def test_fine_tuning_a_folder(name, tmp_path, capsys):
    """A run starts from it, transformers loads what is exported, and both give the same logits."""
    made(name).save_pretrained(tmp_path / "theirs")
    write_text(tmp_path / "text.txt")
    text = TOML.format(folder=tmp_path / "theirs", text=tmp_path / "text.txt", steps=3, rate=0.1)
    (tmp_path / "tune.toml").write_text(text)
    assert main(["train", str(tmp_path / "tune.toml"), "--out", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--layout", "huggingface"]) == 0
    capsys.readouterr()
    before = safetensors.load_file(tmp_path / "theirs" / "model.safetensors")
    after = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = [np.abs(before[path] - after[path]).max() for path in before]
    assert 0 < max(moved) < 1
    model = trained.load(tmp_path / "run")
    x = tokens()[:, :12]
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        close(model(x), loaded(torch.tensor(x)).logits, 5e-6)
    record = json.loads((tmp_path / "run" / "start.json").read_text())
    assert record["layout"] == "huggingface"
    assert not record["unused"]


def test_a_model_of_ours_becomes_a_folder(tmp_path, capsys):
    """Trained from nothing, exported: transformers loads it, and gives the same logits."""
    write_text(tmp_path / "text.txt")
    text = TOML.format(folder="", text=tmp_path / "text.txt", steps=2, rate=0.1)
    for kind, sizes in (
        ("gpt", "activation = 'gelu_tanh'"),
        ("llama", "kv_heads = 2\nstretch = 8.0\nstretch_from = 6"),
    ):
        model = f'kind = "{kind}"\nlayers = 2\nwidth = 16\nheads = 4\n{sizes}\n'
        (tmp_path / f"{kind}.toml").write_text(text.replace('kind = "huggingface"\nfolder = ""\n', model))
        assert main(["train", str(tmp_path / f"{kind}.toml"), "--out", str(tmp_path / kind)]) == 0
        out = tmp_path / f"{kind}.folder"
        assert main(["export", str(tmp_path / kind), str(out), "--layout", "huggingface"]) == 0
        ours, x = trained.load(tmp_path / kind), tokens()[:, :12] % 12
        loaded = hf.AutoModelForCausalLM.from_pretrained(out).eval()
        with torch.no_grad():
            close(ours(x), loaded(torch.tensor(x)).logits, 5e-6)
    capsys.readouterr()
