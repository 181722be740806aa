"""The loop that every tutorial on distillation prints: a DataLoader, transforms image by image, the teacher in every
step, float32, `.item()` in every step.

    python benchmarks/peers/textbook.py cnn --root DATA --images 6000 --workers 2

Prints one JSON object: samples per second of each epoch. Nothing of edgekd is imported.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

import models
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

FOLDERS = {"cnn": "FashionMNIST", "strided": "FashionMNIST", "mlp": "MNIST"}
MEAN_STD = {"FashionMNIST": (0.2860, 0.3530), "MNIST": (0.1307, 0.3081)}
BATCH = 128
TEMPERATURE = 4.0


class Images(Dataset[tuple[Tensor, int]]):
    """As torchvision's: a PIL image per item, then to a tensor, normalized, and clothes flipped at random.

    (torchvision's own ToTensor, Normalize and RandomHorizontalFlip do the same in more Python.)
    """

    def __init__(self, root: Path, task: str, count: int) -> None:
        folder = root / FOLDERS[task] / "raw"
        self.images = _read(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:count]
        self.labels = _read(folder / "train-labels-idx1-ubyte.gz", 8)[:count]
        self.mean, self.std = MEAN_STD[FOLDERS[task]]
        self.flips = FOLDERS[task] == "FashionMNIST"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index])
        if self.flips and torch.rand(1).item() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image, copy=True)).unsqueeze(0).float().div(255)
        return (x - self.mean) / self.std, int(self.labels[index])


def train(student: nn.Module, teacher: nn.Module, loader: DataLoader[tuple[Tensor, int]], epochs: int) -> list[float]:
    """Seconds of each epoch."""
    teacher.eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        student.train()
        running = 0.0
        for x, y in loader:
            with torch.no_grad():
                teacher_logits = teacher(x)
            logits = student(x)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, dim=1),
                F.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            loss = 0.9 * TEMPERATURE**2 * soft + 0.1 * F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds


def _read(path: Path, offset: int) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset)


def main() -> None:
    """Train, and print the samples per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(FOLDERS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(0)
    loader = DataLoader(Images(args.root, args.task, args.images), BATCH, shuffle=True, num_workers=args.workers)
    teacher, student = (getattr(models, f"{args.task}_{role}")() for role in ("teacher", "student"))
    seconds = train(student, teacher, loader, args.epochs)
    print(json.dumps({"samples_per_s": [args.images / value for value in seconds]}))


if __name__ == "__main__":
    main()
