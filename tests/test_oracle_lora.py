"""Low-rank adaptation is the same mathematics as in the library peft, and what it trained is read there."""

import warnings

import jax
import numpy as np
import pytest
from hugging_face import transformers

from functrain import losses, trained
from functrain.cli import main
from functrain.models import LoRA, huggingface, torch_layout

hf = transformers()
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)

pytestmark = pytest.mark.oracle

SIZES = {
    "gpt2": ({"vocab_size": 31, "n_positions": 12, "n_embd": 12, "n_layer": 2, "n_head": 3}, "c_attn", "attention/qkv"),
    "llama": (
        {
            "vocab_size": 31,
            "hidden_size": 12,
            "intermediate_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
        },
        "up_proj",
        "feed_forward/up",
    ),
}
LENGTH, RANK, ALPHA = 9, 3, 12.0


def made(kind):
    """Theirs, dropout off."""
    sizes = SIZES[kind][0]
    config = hf.GPT2Config(**sizes) if kind == "gpt2" else hf.LlamaConfig(**sizes)
    for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, key):
            setattr(config, key, 0.0)
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config).eval()


def close(a, b, bound):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= bound * max(np.abs(b).max(), 1e-3), np.abs(a - b).max()


@pytest.mark.parametrize(("kind", "bound"), [("gpt2", 1e-10), ("llama", 1e-6)])
def test_logits_and_gradients(kind, bound, float64):
    """Every A and B drawn, float64: logits and gradients of A and B; as many numbers are trained.

    Llama's norms and rotations are taken in float32 over there, whatever the weights are in.
    """
    theirs, (_, module, ours) = made(kind).double(), SIZES[kind]
    tensors = {name: a.detach().numpy().copy() for name, a in theirs.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = peft.get_peft_model(
            theirs,
            peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[module], fan_in_fan_out=kind == "gpt2"),
        )
    model = huggingface.described(theirs.config.to_dict()).sized((LENGTH,), 31)
    adapted = LoRA(targets=(f"{ours}/kernel",), rank=RANK, alpha=ALPHA).adapt(model)
    params, state = adapted.init(jax.random.key(0))
    names, like = model.huggingface_names(), jax.eval_shape(model.init, jax.random.key(0))
    own = {name: tensors[name] for name in names.values()}
    state["lora_base"] = torch_layout.from_torch(names, own, *like, model.as_is)[0]

    generator, pairs = torch.Generator().manual_seed(1), {}
    for path in params["lora"]:
        at = f"base_model.model.{names[f'params/{path}'].removesuffix('.weight')}"
        pairs[path] = {n: wanted.get_parameter(f"{at}.lora_{n.upper()}.default.weight") for n in ("a", "b")}
        for array in pairs[path].values():
            array.data = 0.5 * torch.randn(array.shape, generator=generator, dtype=torch.float64)
        params["lora"][path] = {n: array.detach().numpy().T for n, array in pairs[path].items()}
    assert sum(a.size for a in jax.tree.leaves(params)) == wanted.get_nb_trainable_parameters()[0]

    x = np.random.default_rng(2).integers(0, 31, (4, LENGTH))

    def loss(params):
        logits, _ = adapted.apply(params, state, x[:, :-1])
        mean = losses.cross_entropy(logits, x[:, 1:])
        return mean.total / mean.count, logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    given = wanted(torch.tensor(x[:, :-1])).logits
    torch.nn.functional.cross_entropy(given.reshape(-1, 31), torch.tensor(x[:, 1:].reshape(-1))).backward()
    close(logits, given.detach(), bound)
    for path, pair in pairs.items():
        for n, array in pair.items():
            close(gradients["lora"][path][n].T, array.grad, bound)


TOML = """
[task]
kind = "language"
[model]
kind = "huggingface"
folder = "{folder}"
[lora]
targets = ["{target}/kernel"]
rank = 3
[data]
kind = "text"
path = "{text}"
block = 8
batch_size = 8
[train]
steps = 5
[optimizer]
kind = "adamw"
peak_lr = 0.05
"""


@pytest.mark.parametrize("kind", SIZES)
def test_what_was_trained_is_read_by_peft(kind, tmp_path, capsys):
    """A folder adapted by a run: peft puts what is exported beside it, and gives the same logits; so does the whole."""
    made(kind).save_pretrained(tmp_path / "theirs")
    (tmp_path / "text.txt").write_text("".join(chr(97 + i * i % 23) for i in range(2000)))
    text = TOML.format(folder=tmp_path / "theirs", target=SIZES[kind][2], text=tmp_path / "text.txt")
    (tmp_path / "lora.toml").write_text(text)
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "lora.toml"), "--out", str(run)]) == 0
    assert main(["export", str(run), str(tmp_path / "adapter"), "--layout", "peft"]) == 0
    assert main(["export", str(run), str(tmp_path / "whole"), "--layout", "huggingface"]) == 0
    capsys.readouterr()
    x = np.random.default_rng(3).integers(0, 12, (2, 8))
    found = trained.load(run)(x)
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = base(torch.tensor(x)).logits
        close(found, hf.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()(torch.tensor(x)).logits, 1e-5)
        close(found, peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(torch.tensor(x)).logits, 1e-5)
    assert np.abs(np.asarray(found) - before.numpy()).max() > 1e-2
