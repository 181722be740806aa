"""The same training in torchdistill's own engine (its DistillationBox, and the loop that its examples run).

    pip install torchdistill
    python benchmarks/peers/torchdistill_loop.py cnn --root DATA --images 6000 --workers 0

Same images, transforms, models, optimizer and loss as textbook.py. Prints one JSON object: samples per second of each
epoch. Of edgekd only the guard is imported that makes torchvision's CUDA build importable beside a torch without CUDA.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import models
import textbook
import torch
from torch.utils.data import RandomSampler


def config(epochs: int, workers: int) -> dict[str, Any]:
    """What one of its YAML files would hold."""
    logits = {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": "."}
    kd = {**logits, "teacher_module_io": "output", "temperature": textbook.TEMPERATURE, "alpha": 0.1}
    return {
        "num_epochs": epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": textbook.BATCH, "num_workers": workers},
            "requires_supp": True,
        },
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"requires_grad": True, "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "Adam", "kwargs": {"lr": 1e-3}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }


def main() -> None:
    """Train, and print the samples per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(textbook.FOLDERS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    from edgekd.distill.models.vision import import_torchvision

    import_torchvision()
    from torchdistill.core.distillation import get_distillation_box

    logging.disable(logging.INFO)
    torch.manual_seed(0)
    device = torch.device("cpu")
    images = {"train": textbook.Images(args.root, args.task, args.images)}
    teacher, student = (getattr(models, f"{args.task}_{role}")() for role in ("teacher", "student"))
    box = get_distillation_box(
        teacher, student, images, config(args.epochs, args.workers), device, None, False, lr_factor=1
    )
    seconds = []
    for epoch in range(args.epochs):
        start = time.perf_counter()
        box.pre_epoch_process(epoch=epoch)
        for sample_batch, targets, supp_dict in box.train_data_loader:
            box.pre_forward_process()
            loss = box.forward_process(sample_batch, targets, supp_dict)
            box.post_forward_process(loss=loss)
            loss.item()
        box.post_epoch_process()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"samples_per_s": [args.images / value for value in seconds]}))


if __name__ == "__main__":
    main()
