"""Your own data: a function that returns arrays. Replace what is inside `waves` by reading your own files.

Return a mapping with x (N, ...) and y: class numbers (N,), marks of 0 or 1 (N, L) with task = "multilabel", or
numbers (N,) or (N, D) with task = "regression". Add x_val, y_val, x_test, y_test where you have your own splits.
"""

from __future__ import annotations

import numpy as np

LENGTH = 32


def waves(num_samples: int = 2000) -> dict[str, np.ndarray]:
    """Noisy sine waves (class 0) and square waves (class 1) of any phase and speed: x (N, 32) float32, y (N,)."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, num_samples)
    time = np.arange(LENGTH) / LENGTH
    turns = random.uniform(1.0, 2.0, (num_samples, 1)) * time + random.uniform(0.0, 1.0, (num_samples, 1))
    sine = np.sin(2 * np.pi * turns)
    x = np.where(y[:, None] == 1, np.sign(sine), sine) + random.normal(0.0, 0.2, sine.shape)
    return {"x": x.astype(np.float32), "y": y}
