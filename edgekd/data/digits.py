"""`digits`: 1797 real handwritten digits that ship with scikit-learn; no download."""

from __future__ import annotations

import numpy as np

from edgekd.data.source import Request, Source, array_pool
from edgekd.errors import DataError, MissingExtra

# UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
LICENCE = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
LABELS = tuple("0123456789")


def read(request: Request) -> Source:
    """(1797, 8, 8, 1) uint8 in ten classes; the 17 levels of grey are spread over 0 to 255, as image files have them.

    Raises `MissingExtra` without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train", purpose="the data set 'digits'") from error
    data = load_digits()
    x = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    y = data.target.astype(np.int64)
    labels = request.labels or LABELS
    if len(labels) != len(LABELS):
        raise DataError(f"data.labels names {len(labels)} classes, but digits has {len(LABELS)}")
    return Source("digits", labels, LICENCE, {"train": array_pool(x, y, first_id=0, prepare=request.prepare)})
