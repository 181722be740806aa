"""How texts become ids in one run: the tokenizer that the recipe names, cut down to the data where it says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekd.data.vocabulary import shrink
from edgekd.device.tokens import TOKENIZER, tokenize_step, vocabulary_of, with_tokenizers
from edgekd.errors import DataError
from edgekd.hub import PREFIX, fetched
from edgekd.references import locate
from edgekd.rows import Rows, pieces
from edgekd.spec import Array, Dataset, Step, Task, Tokenize, Trim, Vocabulary

INPUT_IDS = "input_ids"  # as Hugging Face's runtimes feed it
PROBLEMS: dict[Task, str] = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


def opened(steps: tuple[Step, ...], search_path: Path) -> tuple[Step, ...]:
    """The steps with their tokenizer read: a folder, or hf: and the id of a model on the hub, stands for the
    tokenizer.json in it.

    Raises `DataError` where there is none, and `ModelError` when the hub cannot be asked.
    """

    def read(name: str) -> bytes:
        place = name.removeprefix(PREFIX)
        found = locate(place, search_path)
        path = found / TOKENIZER if found is not None and found.is_dir() else found
        if found is None and name != place:
            path = fetched(place, TOKENIZER)
        if path is None or not path.is_file():
            raise DataError(
                f"preprocess.steps: there is no tokenizer {name}; expected a tokenizer.json (a path, package/path of "
                "an installed package, or hf: and the id of a model on the hub that has one), as "
                "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) writes it"
            )
        return path.read_bytes()

    return with_tokenizers(steps, read)


def bundled(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps as a bundle names them: its tokenizer lies at its root."""
    return tuple(replace(step, file=TOKENIZER) if isinstance(step, Tokenize) else step for step in steps)


def tokenizer_files(steps: Iterable[Step], *, task: Task, labels: Sequence[str]) -> dict[str, bytes]:
    """What a bundle holds for these steps: the tokenizer, and what transformers and optimum want to find beside it."""
    step = tokenize_step(steps)
    if step is None:
        return {}
    vocabulary = vocabulary_of(step)
    classes = {
        "architectures": ["BertForSequenceClassification"],
        "problem_type": PROBLEMS.get(task),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    config = {
        # Any kind that they know does: the graph is run, no layer is built.
        "model_type": "bert",
        **(classes if task in PROBLEMS else {"architectures": ["BertModel"]}),
        "vocab_size": vocabulary.size,
        "pad_token_id": vocabulary.pad,
        "max_position_embeddings": step.max_length,
    }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": step.max_length,
        "pad_token": vocabulary.tokens[vocabulary.pad],
        # The graph makes the mask itself.
        "model_input_names": [INPUT_IDS],
    }
    plain = {"config.json": config, "tokenizer_config.json": tokenizer}
    return {
        TOKENIZER: step.content.encode(),
        **{name: (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode() for name, table in plain.items()},
    }


def of_one_length(x: Array, steps: Iterable[Step]) -> list[NDArray[np.intp]]:
    """Positions of the samples that lie in one array without padding: texts that `trim` makes equally long, the
    largest group first; of anything else all."""
    pad = next((step.pad for step in steps if isinstance(step, Trim)), None)
    if pad is None:
        return [np.arange(len(x))]
    places = np.arange(1, x.shape[1] + 1)
    lengths = np.where(x != pad, places, 1).max(axis=1)
    groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    return sorted(groups, key=len, reverse=True)


def num_cut(x: Rows, pad: int) -> int:
    """How many texts fill their row to its end: longer ones were cut there (and those that fit just so count too)."""
    return sum(int(np.count_nonzero(piece[:, -1] != pad)) for piece in pieces(x))


def random_texts(train_NT: Array, vocabulary: Vocabulary, count: int, rng: np.random.Generator) -> Array:
    """Random ids (count, T) int32 with the lengths and the first and last token of texts of the train split."""
    rows = train_NT[rng.integers(0, len(train_NT), count)]
    lengths = np.maximum((rows != vocabulary.pad).sum(axis=1), 1)
    ids = rng.integers(0, vocabulary.size, rows.shape, dtype=np.int32)
    ids = np.where(ids == vocabulary.pad, (vocabulary.pad + 1) % vocabulary.size, ids).astype(np.int32)
    ids[:, 0] = rows[:, 0]
    for row, length in enumerate(lengths):
        ids[row, length - 1] = rows[row, length - 1]
        ids[row, length:] = vocabulary.pad
    return ids


def with_vocabulary(
    steps: tuple[Step, ...], read: Callable[[tuple[Step, ...]], Dataset]
) -> tuple[tuple[Step, ...], Dataset]:
    """The steps with the vocabulary that the recipe asks for, and the data read with them.

    `read` reads the data by some steps. A smaller vocabulary is that of the tokens that the train split uses most.
    """
    step = tokenize_step(steps)
    if step is None or step.vocabulary is None:
        return steps, read(steps)
    whole = read(tuple(replace(item, vocabulary=None) if item is step else item for item in steps))
    counts = np.zeros(vocabulary_of(step).size, np.int64)
    for piece in pieces(whole.train.x):
        counts += np.bincount(piece.ravel(), minlength=len(counts))
    content, _ = shrink(step.content, counts, step.vocabulary)
    smaller = replace(step, file=TOKENIZER, content=content, vocabulary=None)
    pad = vocabulary_of(smaller).pad
    steps = tuple(
        smaller if item is step else replace(item, pad=pad) if isinstance(item, Trim) else item for item in steps
    )
    return steps, read(steps)
