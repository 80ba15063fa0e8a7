"""What full attention makes of each question, kept on disk: the reference that methods are compared with.

Knows arrays in files; a file that cannot be read counts as not there, and is made again. Does not know how a question is asked.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .asking import Response
from .documents import Continuation, Document, Question


@dataclass(frozen=True, slots=True)
class Reference:
    """What full attention makes of one question.

    Attributes:
        nll: negative log-likelihood of each token of the gold answer, nats, fp64 ``[tokens]``.
        log_probabilities: float16 ``[tokens, vocabulary]``.
        greedy: whether each of these tokens is the most likely one.
        reply: the greedy reply; None where it was not asked for.
    """

    nll: NDArray[np.float64]
    log_probabilities: NDArray[np.float16]
    greedy: bool
    reply: str | None

    @classmethod
    def of(cls, response: Response) -> Reference:
        """As it is kept: log-probabilities in half precision, whose error a divergence only sees squared."""
        return cls(
            np.asarray(response.nll, np.float64), response.log_probabilities.to(torch.float16).numpy(), response.greedy, response.reply
        )


class References:
    """References by document and question.

    Args:
        folder: where they are kept; one of a model.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, document: Document, question: Question | Continuation, replies: bool = True) -> Reference | None:
        """The one that is kept, if there is one, and it has a reply where ``replies`` are wanted."""
        found = _read(self._file(document, question))
        wanted = replies and isinstance(question, Question)
        return None if found is None or (wanted and found.reply is None) else found

    def keep(self, document: Document, question: Question | Continuation, response: Response) -> Reference:
        """What was asked just now, which is kept from now on."""
        reference = Reference.of(response)
        _write(self._file(document, question), reference)
        return reference

    def known(self, document: Document) -> bool:
        """Whether every question about a document has one."""
        return all(self._file(document, question).exists() for question in document.questions)

    def _file(self, document: Document, question: Question | Continuation) -> Path:
        return self._folder / document.key / f"{question.key}.npz"


def _read(file: Path) -> Reference | None:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            nll, rows = arrays["nll"], arrays["log_probabilities"]
            greedy, reply = json.loads(arrays["reply"].item())
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    whole = nll.dtype == np.float64 and rows.dtype == np.float16 and rows.ndim == 2 and nll.shape == rows.shape[:1]
    whole = whole and isinstance(greedy, bool) and isinstance(reply, str | None)
    return Reference(nll, rows, greedy, reply) if whole else None


def _write(file: Path, reference: Reference) -> None:
    """All of it or nothing: a run may be killed at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
    with os.fdopen(handle, "wb") as out:
        np.savez(
            out,
            nll=reference.nll,
            log_probabilities=reference.log_probabilities,
            reply=np.array(json.dumps([reference.greedy, reference.reply])),
        )
    Path(name).replace(file)
