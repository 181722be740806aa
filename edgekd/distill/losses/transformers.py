"""Losses between transformer encoders. Shapes: B batch, A attention heads, L tokens, D width.

Masks (B, L) are bool or 0/1, true = a token that counts. Teacher tensors are constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.losses.shapes import constant, counted, in_full_precision, masked_mean, precise
from edgekd.errors import UsageError

# Scores of positions that a mask took out: at most this in the implementations of BERT.
MASKED_SCORE = -100.0
RELATIONS = {"v2": (((0, 0), (1, 1), (2, 2)), 1.0 / 3.0), "v1": (((0, 1), (2, 2)), 1.0)}
# Taken for minus infinity: its exponential is 0, and differences of it are no NaN.
_NEVER = -1e9


def attention_mse(
    student_maps: Tensor | Sequence[Tensor], teacher_maps: Tensor | Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """Sum over layers of the mean squared error of the raw attention scores (B, A, L, L), before the softmax.

    Scores of at most -100 (masked positions) are set to 0 on both sides. With a mask (B, L) the mean is over the pairs
    of tokens that count: the value then does not depend on the padding, as it does in the authors' code. The adapter
    `attention_scores` makes the scores of queries and keys, and adds the mask of the batch.

    Jiao, Yin, Shang, Jiang, Chen, Li, Wang and Liu, "TinyBERT: Distilling BERT for Natural Language Understanding",
    2019, arXiv:1909.10351.
    """
    pairs_BLL = None if mask is None else mask.bool()[:, :, None] & mask.bool()[:, None, :]
    losses = []
    for student, teacher in _layers(student_maps, teacher_maps):
        s, t = precise(student), constant(teacher)
        _check_equal(s, t)
        s, t = (torch.where(value <= MASKED_SCORE, torch.zeros_like(value), value) for value in (s, t))
        errors = (s - t).square()
        losses.append(errors.mean() if pairs_BLL is None else masked_mean(errors.mean(dim=1), pairs_BLL))
    return torch.stack(losses).sum()


def hidden_mse(
    student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """Mean squared error of hidden states (B, L, D), summed over layers; masked: squared errors / (tokens * D).

    Widths are brought together by the adapter `linear`. Jiao et al., 2019, arXiv:1909.10351.
    """
    losses = []
    for one, other in _layers(student, teacher):
        s, t = counted(precise(one), mask), counted(constant(other), mask)
        _check_equal(s, t)
        losses.append(masked_mean((s - t).square().mean(dim=-1), mask))
    return torch.stack(losses).sum()


@in_full_precision
def minilm_relation(
    student_qkv: Sequence[Tensor],
    teacher_qkv: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    heads: int = 12,
    relations: Literal["v2", "v1"] = "v2",
) -> Tensor:
    """How queries, keys and values of one layer relate, each (B, L, D) of student and teacher; widths may differ.

        (1/B) sum_b 1/(heads * len_b) sum over heads and tokens of KL(softmax(R_t) || softmax(R_s))
        R = X Y^T / sqrt(D / heads) over the len_b positions that count

    "v2": (QQ, KK, VV), each of weight 1/3; "v1": (QK, VV), each of weight 1. Raises `UsageError` for padding on the
    left; on a GPU, which would have to wait for that look, it takes the positions that count wherever they are. Wang,
    Wei, Dong, Bao, Yang and Zhou, "MiniLM", 2020, arXiv:2002.10957 (v1); Wang, Bao, Huang, Dong and Wei, "MiniLMv2",
    2020, arXiv:2012.15828.
    """
    if relations not in RELATIONS:
        raise UsageError(f"found relations = '{relations}', expected 'v2' or 'v1'")
    if len(student_qkv) != 3 or len(teacher_qkv) != 3:
        raise UsageError(f"found {len(student_qkv)} and {len(teacher_qkv)} tensors, expected queries, keys and values")
    pairs, weight = RELATIONS[relations]
    s = [_heads(precise(value), heads) for value in student_qkv]
    t = [_heads(constant(value), heads) for value in teacher_qkv]
    batch, _, tokens, _ = s[0].shape
    if any(value.shape[0] != batch or value.shape[2] != tokens for value in (*s, *t)):
        found = [[list(value.shape) for value in side] for side in (student_qkv, teacher_qkv)]
        raise UsageError(f"found {found[0]} of the student and {found[1]} of the teacher, expected the same B and L")
    mask_BL = _lengths_mask(mask, batch, tokens, s[0].device)
    counts_BAL = mask_BL[:, None, :]
    length_B = mask_BL.sum(dim=1).clamp(min=1)
    losses = []
    for one, other in pairs:
        log_q = _relation(s[one], s[other], mask_BL)
        log_p = _relation(t[one], t[other], mask_BL)
        divergence_BAL = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
        per_sample_B = (divergence_BAL * counts_BAL).sum(dim=(1, 2)) / (heads * length_B)
        losses.append(weight * per_sample_B.mean())
    return torch.stack(losses).sum()


def patient(student_cls: Tensor | Sequence[Tensor], teacher_cls: Tensor | Sequence[Tensor]) -> Tensor:
    """Element-mean squared error of L2-normalized [CLS] states (B, D) or of (B, L, D), of which the first token counts.

    Several layers: their mean. Sun, Cheng, Gan and Liu, "Patient Knowledge Distillation for BERT Model Compression",
    2019, arXiv:1908.09355.
    """
    losses = []
    for student, teacher in _layers(student_cls, teacher_cls):
        s, t = (value[:, 0] if value.dim() == 3 else value for value in (precise(student), constant(teacher)))
        _check_equal(s, t)
        losses.append((F.normalize(s, dim=-1) - F.normalize(t, dim=-1)).square().mean())
    return torch.stack(losses).mean()


def cosine_embedding(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean over unmasked tokens of 1 - cos between the last hidden states (B, L, D).

    Sanh, Debut, Chaumond and Wolf, "DistilBERT", 2019, arXiv:1910.01108, whose loss is 5 * kd(T = 2) + 2 * masked-LM
    cross-entropy + 1 * this.
    """
    s, t = counted(precise(student), mask), counted(constant(teacher), mask)
    _check_equal(s, t)
    return masked_mean(1.0 - F.cosine_similarity(s, t, dim=-1), mask)


def _layers(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    s = [student] if isinstance(student, Tensor) else list(student)
    t = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if len(s) != len(t) or not s:
        raise UsageError(f"found {len(s)} layers of the student and {len(t)} of the teacher; tap as many on both sides")
    return list(zip(s, t))


def _check_equal(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise UsageError(
            f"found {list(student.shape)} of the student and {list(teacher.shape)} of the teacher, expected equal "
            "shapes; bring the widths together with the adapter 'linear'"
        )


def _heads(x_BLD: Tensor, heads: int) -> Tensor:
    if x_BLD.dim() != 3 or heads < 1 or x_BLD.shape[2] % heads:
        raise UsageError(
            f"found {list(x_BLD.shape)} for {heads} relation heads, expected (B, L, D), D a multiple of it"
        )
    batch, tokens, width = x_BLD.shape
    return x_BLD.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


def _lengths_mask(mask: Tensor | None, batch: int, tokens: int, device: torch.device) -> Tensor:
    if mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool, device=device)
    mask_BL = mask.to(device=device, dtype=torch.bool)
    if mask_BL.shape != (batch, tokens):
        raise UsageError(f"the mask is {list(mask_BL.shape)}, expected {[batch, tokens]}: one value per token")
    # Between tokens it may be: a text can hold the word [PAD]. A GPU would have to wait for the look.
    if mask_BL.device.type == "cpu" and bool((~mask_BL[:, 0] & mask_BL.any(dim=1)).any()):
        raise UsageError("the mask has padding before the first token; pad on the right: the first position counts")
    return mask_BL


def _relation(x_BALD: Tensor, y_BALD: Tensor, mask_BL: Tensor) -> Tensor:
    """Log of the softmax over the positions that count (B, A, L, L)."""
    scores = x_BALD @ y_BALD.transpose(2, 3) / math.sqrt(x_BALD.shape[-1])
    return F.log_softmax(scores.masked_fill(~mask_BL[:, None, None, :], _NEVER), dim=-1)
