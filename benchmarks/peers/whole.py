"""Whole processes: python -m peers.whole PEER FOLDER trains 784-128-10 on MNIST, as one would write it.

Import, reading, three epochs at batch 128 and evaluation on the 10,000 images of the test; prints the accuracy. FOLDER
holds the four files of MNIST, which functrain reads too. functrain itself is its command, and not here.
"""

import gzip
import os
import sys
from pathlib import Path

import numpy as np

EPOCHS, BATCH, HIDDEN, RATE = 3, 128, 128, 1e-3


def read(folder: Path) -> list[np.ndarray]:
    """Images and labels of bytes, of training and of the test."""
    found = []
    for part in ("train", "t10k"):
        for name, skip in (("images-idx3", 16), ("labels-idx1", 8)):
            packed = (folder / f"{part}-{name}-ubyte.gz").read_bytes()
            data = np.frombuffer(gzip.decompress(packed), np.uint8, offset=skip)
            found.append(data.reshape(-1, 28, 28) if skip == 16 else data)
    return [np.array(array) for array in found]


def torch_eager(folder: Path) -> float:
    """A loop over indices: the quickest that PyTorch has for data in memory."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, y, test_x, test_y = map(torch.from_numpy, read(folder))
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    optimizer, loss = torch.optim.Adam(model.parameters(), RATE), nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            optimizer.zero_grad()
            loss(model(x[rows].float().div_(255)), y[rows].long()).backward()
            optimizer.step()
    with torch.no_grad():
        return (model(test_x.float().div_(255)).argmax(1) == test_y).float().mean().item()


def lightning(folder: Path) -> float:
    """A LightningModule and DataLoaders."""
    import logging
    import warnings

    import lightning as L
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, y, test_x, test_y = map(torch.from_numpy, read(folder))

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def test_step(self, batch, index):
            self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), RATE)

    def loader(x, y, batch, shuffle):
        return DataLoader(TensorDataset(x.float().div(255), y.long()), batch, shuffle=shuffle, drop_last=shuffle)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module := Module(), loader(x, y, BATCH, True))
    return trainer.test(module, loader(test_x, test_y, 1000, False), verbose=False)[0]["accuracy"]


def keras(folder: Path) -> float:
    """compile, fit and evaluate."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers

    x, y, test_x, test_y = read(folder)
    x, test_x = (images.astype(np.float32) / 255 for images in (x, test_x))
    stack = [keras.Input((28, 28)), layers.Flatten(), layers.Dense(HIDDEN, "relu"), layers.Dense(10)]
    model, loss = keras.Sequential(stack), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss, metrics=["accuracy"], steps_per_execution=32)
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model.evaluate(test_x, test_y, batch_size=1000, verbose=0)[1]


PROGRAMS = {"torch-eager": torch_eager, "lightning": lightning, "keras": keras}

if __name__ == "__main__":
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the frameworks print is no answer
    print(PROGRAMS[sys.argv[1]](Path(sys.argv[2])), file=answer, flush=True)
