"""What a model or teacher gives for a whole split: no gradients, no augmentation, float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.distill.batches import Batches
from edgekd.distill.masking import ASKED, Masking, likelihoods
from edgekd.distill.modules import evaluating
from edgekd.distill.teachers import Teacher
from edgekd.errors import ModelError
from edgekd.spec import Split, Step, Task

Named = Mapping[str, Tensor]

BATCH = 512
# Of masked texts there is a row of logits for each token that is asked for, with a column for each word.
MASKED_BATCH = 64


def evaluate(
    model: nn.Module | Teacher,
    split: Split,
    steps: tuple[Step, ...] = (),
    *,
    task: Task = "classification",
    batch_size: int | None = None,
    masking: Masking | None = None,
) -> NDArray[np.float32]:
    """Outputs (N, D) of a module or a teacher for all samples of `split`, in their order.

    `steps` are the arithmetic ones. A module computes in eval mode on the device where it is, and is left as it
    was. Texts with a `masking` give (N, 2): the log-likelihood of what is asked for, and how many tokens that are.
    Raises `ModelError` when the model gives no logits or fails on the shape of the samples.
    """
    size = batch_size or (BATCH if masking is None else MASKED_BATCH)
    batches = Batches(split, steps, batch_size=size, task=task, masking=masking).full()
    if not isinstance(model, nn.Module):
        return _collect(model, batches)
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    with evaluating(model):
        return outputs_of(model, batches, device)


def outputs_of(module: nn.Module, batches: Iterable[Named], device: torch.device) -> NDArray[np.float32]:
    """Outputs (N, D) of a module that is in eval mode already and lies on `device`."""
    return _collect(lambda batch: forward(module, batch["x"].to(device)), batches)


def forward(module: nn.Module, x: Tensor) -> Named:
    """One forward pass; a module that returns a tensor gives {"logits": tensor}.

    Raises `ModelError` when it returns something else, or cannot take the shape of `x`.
    """
    try:
        return named(module(x), "the model")
    except (RuntimeError, ValueError, IndexError) as error:
        if isinstance(error, ModelError) or not _is_about_shape(str(error)):
            raise
        raise ModelError(
            f"the model fails on an input of shape {list(x.shape)}: {error}. Does it fit the preprocessing steps "
            "(channels, size, layout)?"
        ) from error


def named(output: object, what: str) -> Named:
    """Named tensors from what `what` returned. Raises `ModelError` unless "logits" is among them."""
    if isinstance(output, Tensor):
        return {"logits": output}
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output
    kind = f"a mapping with {sorted(output)}" if isinstance(output, Mapping) else f"a {type(output).__name__}"
    raise ModelError(f"{what} gives {kind}, expected a tensor or a mapping that holds the tensor 'logits'")


def _collect(model: Callable[[Named], Named], batches: Iterable[Named]) -> NDArray[np.float32]:
    with torch.inference_mode():
        parts = [_answer(model(batch), batch) for batch in batches]
    outputs: NDArray[np.float32] = torch.cat(parts).numpy()
    return outputs


def _answer(output: object, batch: Named) -> Tensor:
    """What is kept of the model's output for a batch: of masked texts not the logits of all words, but how right."""
    logits = named(output, "the model")["logits"]
    if ASKED in batch:
        logits = likelihoods(logits, batch["y"].to(logits.device), batch[ASKED].to(logits.device))
    return logits.float().cpu()


def _is_about_shape(text: str) -> bool:
    return any(word in text.lower() for word in ("shape", "size", "dimension", "channels", "expected input"))
