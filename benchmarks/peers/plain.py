"""Plain training of the student by hand, as fast as forty lines make it: all images in one tensor, whole batches
flipped at once, fused Adam, channels last, no teacher, one `.item()` per epoch.

    python benchmarks/peers/plain.py cnn --root DATA --images 6000

Prints one JSON object: samples per second of each epoch. Nothing of edgekd is imported.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import models
import textbook
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def train(student: nn.Module, x: Tensor, y: Tensor, *, flips: bool, epochs: int) -> list[float]:
    """Seconds of each epoch."""
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3, fused=True)
    student.train()
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        running = torch.zeros(())
        for chosen in torch.randperm(len(x)).split(textbook.BATCH):
            batch = x[chosen]
            if flips:
                mirrored = torch.rand(len(chosen)) < 0.5
                batch[mirrored] = batch[mirrored].flip(-1)
                batch = batch.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(student(batch), y[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            running += loss.detach()
        running.item()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Train, and print the samples per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(textbook.FOLDERS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)
    images = textbook.Images(args.root, args.task, args.images)
    x = ((torch.from_numpy(images.images.copy()).float() / 255 - images.mean) / images.std).unsqueeze(1)
    y = torch.from_numpy(images.labels.copy()).long()
    student = getattr(models, f"{args.task}_student")()
    if images.flips:
        student = student.to(memory_format=torch.channels_last)
    seconds = train(student, x, y, flips=images.flips, epochs=args.epochs)
    print(json.dumps({"samples_per_s": [args.images / value for value in seconds]}))


if __name__ == "__main__":
    main()
