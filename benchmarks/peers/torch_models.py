"""The models of the works in PyTorch, made of the arrays they start from: functrain's, each in torch's layout."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from peers.given import Given


def _filled(module: nn.Module, **arrays) -> nn.Module:
    """The module with these arrays for its parameters and buffers."""
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))
    return module


class Arrays:
    """Layers made of the arrays at a path."""

    def __init__(self, given: Given):
        self.params, self.state = given.params, given.state

    def linear(self, path: str) -> nn.Module:
        """Our kernel is [inputs, outputs], torch's the other way round."""
        kernel = self.params[f"{path}/kernel"]
        return _filled(nn.Linear(*kernel.shape), weight=kernel.T, bias=self.params[f"{path}/bias"])

    def conv(self, path: str, stride: int = 1, padding: int = 0) -> nn.Module:
        """Ours is [height, width, inputs, outputs]; torch's [outputs, inputs, height, width]."""
        kernel = self.params[f"{path}/kernel"].transpose(3, 2, 0, 1)
        bias = {"bias": self.params[f"{path}/bias"]} if f"{path}/bias" in self.params else {}
        module = nn.Conv2d(*kernel.shape[1::-1], kernel.shape[2], stride, padding, bias=bool(bias))
        return _filled(module, weight=kernel, **bias)

    def layer_norm(self, path: str, epsilon: float) -> nn.Module:
        """Over the last axis."""
        scale = self.params[f"{path}/scale"]
        return _filled(nn.LayerNorm(len(scale), epsilon), weight=scale, bias=self.params[f"{path}/bias"])

    def batch_norm(self, path: str) -> nn.Module:
        """With its running statistics."""
        scale, mean, var = self.params[f"{path}/scale"], self.state[f"{path}/mean"], self.state[f"{path}/var"]
        arrays = {"weight": scale, "bias": self.params[f"{path}/bias"], "running_mean": mean, "running_var": var}
        return _filled(nn.BatchNorm2d(len(scale)), **arrays)

    def embedding(self, path: str) -> nn.Embedding:
        """A row a token."""
        return nn.Embedding.from_pretrained(torch.tensor(self.params[f"{path}/table"]), freeze=False)


def mlp(given: Given) -> nn.Module:
    """Linear layers with ReLU between them."""
    make, layers = Arrays(given), [nn.Flatten()]
    for i in range(len(given.model["hidden"]) + 1):
        layers += [make.linear(f"layer{i}"), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(given: Given) -> nn.Module:
    """LeNet-5 for images of 28 x 28."""
    make = Arrays(given)
    first = make.linear("linear0")  # reads what torch flattens channels first, and we channels last
    columns = np.arange(first.in_features).reshape(5, 5, 16).transpose(2, 0, 1).ravel()
    _filled(first, weight=first.weight.detach().numpy()[:, columns])
    return nn.Sequential(
        nn.Unflatten(1, (1, 28)),
        *(make.conv("conv0", padding=2), nn.ReLU(), nn.MaxPool2d(2), make.conv("conv1"), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), first, nn.ReLU(), make.linear("linear1"), nn.ReLU(), make.linear("linear2")),
    )


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and beside a way past it."""

    def __init__(self, make: Arrays, path: str, heads: int, epsilon: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (make.layer_norm(f"{path}/norm{i}", epsilon) for i in (1, 2))
        self.qkv, self.out = (make.linear(f"{path}/attention/{name}") for name in ("qkv", "out"))
        self.up, self.down = (make.linear(f"{path}/feed_forward/{name}") for name in ("up", "down"))

    def forward(self, x):
        """x [batch, length, width]."""
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """As functrain.models.GPT: pre-norm, learned positions, the head tied to the embedding."""

    def __init__(self, given: Given):
        super().__init__()
        make, model = Arrays(given), given.model
        self.tokens, self.positions = make.embedding("tokens"), make.embedding("positions")
        blocks = (Block(make, f"block{i}", model["heads"], model["epsilon"]) for i in range(model["layers"]))
        self.blocks, self.norm = nn.Sequential(*blocks), make.layer_norm("norm", model["epsilon"])

    def forward(self, x):
        """Tokens [batch, block] to logits."""
        h = self.blocks(self.tokens(x) + self.positions.weight)
        return F.linear(self.norm(h), self.tokens.weight)


class LSTM(nn.Module):
    """An embedding, one layer, a head at every place."""

    def __init__(self, given: Given):
        super().__init__()
        make, path = Arrays(given), "cells/layer0/forward"
        self.tokens, self.head = make.embedding("tokens"), make.linear("head")
        arrays = {"weight_ih_l0": f"{path}/input/kernel", "weight_hh_l0": f"{path}/hidden/kernel"}
        arrays |= {"bias_ih_l0": f"{path}/input/bias", "bias_hh_l0": f"{path}/hidden/bias"}
        cells = nn.LSTM(self.tokens.embedding_dim, given.model["width"], batch_first=True)
        self.cells = _filled(cells, **{name: given.params[at].T for name, at in arrays.items()})

    def forward(self, x):
        """Tokens [batch, block] to logits."""
        return self.head(self.cells(self.tokens(x))[0])


class Residual(nn.Module):
    """Two convolutions beside a shortcut without parameters (He et al. 2016, section 4.2, option A)."""

    def __init__(self, make: Arrays, path: str):
        super().__init__()
        m, n = (make.params[f"{path}/conv1/kernel"].shape[i] for i in (3, 2))
        self.stride, self.more = (1 if m == n else 2), m - n
        self.conv1, self.norm1 = make.conv(f"{path}/conv1", self.stride, 1), make.batch_norm(f"{path}/norm1")
        self.conv2, self.norm2 = make.conv(f"{path}/conv2", 1, 1), make.batch_norm(f"{path}/norm2")

    def forward(self, x):
        """x [batch, maps, height, width]."""
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more)))


class ResNet(nn.Module):
    """6 n + 2 layers, for images of 32 x 32."""

    def __init__(self, given: Given):
        super().__init__()
        make, each = Arrays(given), (given.model["layers"] - 2) // 6
        self.conv, self.norm = make.conv("conv1", padding=1), make.batch_norm("norm1")
        paths = (f"stage{stage}/block{block}" for stage in (1, 2, 3) for block in range(each))
        self.blocks, self.linear = nn.Sequential(*(Residual(make, path) for path in paths)), make.linear("linear")
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        """Images [batch, height, width, channels]; seen as channels first they lie as torch likes them best."""
        return self.linear(self.blocks(F.relu(self.norm(self.conv(x.permute(0, 3, 1, 2))))).mean((2, 3)))


MODELS = {"mlp": mlp, "lenet": lenet, "gpt": GPT, "recurrent": LSTM, "cifar_resnet": ResNet}
