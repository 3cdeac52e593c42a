"""CIFAR-10 by ResNet-20 in PyTorch: what configs/cifar10_resnet20.toml does, written by hand, to compare accuracies.

    pip install torch pillow
    python benchmarks/cifar_resnet_torch.py cifar10-jpeg/cifar10_jpeg_bytes.npz --seeds 0 1 2

Model, augmentation, optimizer and schedule are those of the config: the ResNet of He et al. 2016, section 4.2, with
option A; images moved by up to 4 pixels and turned round; SGD with Nesterov momentum, weight decay on kernels alone; a
linear warmup, then half a cosine to 0. A line of JSON for each seed: test accuracy after the last step, and seconds.
"""

import argparse
import io
import itertools
import json
import math
import time

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters."""

    def __init__(self, n: int, m: int):
        """n maps in, m out; the image is halved where they differ."""
        super().__init__()
        self.stride, self.more = (1, 0) if n == m else (2, m - n)
        self.conv1, self.norm1 = nn.Conv2d(n, m, 3, self.stride, 1, bias=False), nn.BatchNorm2d(m)
        self.conv2, self.norm2 = nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [batch, n, height, width]."""
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more)))


class ResNet(nn.Module):
    """6 n + 2 layers."""

    def __init__(self, layers: int, width: int = 16):
        """Initial values as in He et al. 2015, eq. 10, cut off at two deviations."""
        super().__init__()
        maps = [width] + [width * 2**stage for stage in range(3) for _ in range((layers - 2) // 6)]
        self.conv, self.norm = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Block(n, m) for n, m in itertools.pairwise(maps)))
        self.linear = nn.Linear(maps[-1], 10)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                deviation = math.sqrt(2 / fan_in) / 0.87962566103423978  # that of a normal number cut off at two
                nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [batch, 3, height, width] to logits [batch, 10]."""
        return self.linear(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


def read(path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images in 0..1, [n, 3, 32, 32], and labels: of training and of the test."""
    found = []
    with np.load(path) as file:
        for split in ("train", "test"):
            data, at = file[f"{split}_jpeg"].tobytes(), file[f"{split}_offsets"]
            x = np.stack(
                [np.asarray(Image.open(io.BytesIO(data[i:j])).convert("RGB")) for i, j in itertools.pairwise(at)]
            )
            found += [torch.from_numpy(x).permute(0, 3, 1, 2) / 255, torch.from_numpy(file[f"{split}_y"]).long()]
    return tuple(found)


def augmented(x: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `padding` pixels, black coming in, and every second turned round."""
    n, size = len(x), x.shape[-1]
    top, left = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(size), left + torch.arange(size)
    turned = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(turned, columns.flip(1), columns)
    padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def share(step: int, warmup: int, steps: int) -> float:
    """Of the peak rate, at a step counted from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))) / 2


def train(given: argparse.Namespace, data: tuple[torch.Tensor, ...], seed: int) -> dict[str, float]:
    """The accuracy on the test, and the seconds that training took."""
    x, y, test_x, test_y = data
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ResNet(given.layers).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    kernels = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": given.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=given.lr,
        momentum=0.9,
        nesterov=True,
    )
    # As the config: mean and deviation of the training images by channel.
    mean, deviation = x.mean((0, 2, 3)).reshape(3, 1, 1), x.std((0, 2, 3), correction=0).reshape(3, 1, 1)
    each = len(x) // given.batch_size
    steps = given.steps or round(given.epochs * each)
    start = time.perf_counter()
    for step in range(steps):
        if step % each == 0:
            order = torch.randperm(len(x), generator=generator)
        rows = order[step % each * given.batch_size :][: given.batch_size]
        batch = (augmented(x[rows], 4, generator) - mean) / deviation
        loss = F.cross_entropy(model(batch.contiguous(memory_format=torch.channels_last)), y[rows])
        for group in optimizer.param_groups:
            group["lr"] = given.lr * share(step, given.warmup, steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        parts = [(part - mean) / deviation for part in test_x.split(500)]
        right = torch.cat([model(part).argmax(1) for part in parts]) == test_y
    return {"seed": seed, "steps": steps, "test_accuracy": right.double().mean().item(), "seconds": round(seconds, 1)}


def main() -> None:
    """Train once a seed."""
    parser = argparse.ArgumentParser(description="CIFAR-10 by ResNet-20 in PyTorch")
    parser.add_argument("path", help="the packed images")
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--steps", type=int, default=0, help="in place of epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2, help="the highest rate")
    parser.add_argument("--warmup", type=int, default=300, help="steps of linear rise")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = read(given.path)
    for seed in given.seeds:
        print(json.dumps(train(given, data, seed)), flush=True)


if __name__ == "__main__":
    main()
