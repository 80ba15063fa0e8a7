"""Text that any encoder accepts, and ids in which only the template can write control tokens.

Knows the tokenizer's added tokens; it does not know messages or roles. Text from outside is *defused*: every control token in it
is cut in two by a private character before the template renders it, and the rendered text is encoded piece by piece between cuts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

CUT = "\U000f0000"
"""Private-use character that marks a cut; `clean_text` removes it from what comes from outside."""

ANCHOR_CHARS = 64
"""Characters of the text before a piece that are encoded with it, so that it is cut into tokens as a continuation."""


def clean_text(text: str) -> str:
    """`text` with surrogate pairs joined; lone surrogates (no encoder takes them) and `CUT` become U+FFFD."""
    if not text.isascii():
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").replace(CUT, "\ufffd")
    return text


def control_texts(tokenizer: Any, template: str) -> tuple[str, ...]:
    """Texts of the tokens that steer the model: special ones, and other added ones that the template writes. Longest first."""
    found = {str(text) for text in tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or token.content in template:
            found.add(token.content)
    return tuple(sorted((text for text in found if text and not text.isspace()), key=lambda text: (-len(text), text)))


class TextEncoder:
    """Encodes rendered text, and defuses text from outside.

    Args:
        tokenizer: a transformers tokenizer.
        template: source of its chat template.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer = tokenizer
        controls = control_texts(tokenizer, template)
        self._control = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        added = tokenizer.added_tokens_decoder.values()
        self._normalised = any(token.normalized and token.content in controls for token in added)
        self.control_ids = frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.content in controls)

    def defuse(self, value: Any) -> Any:
        """`value` (a str, or JSON-like lists and mappings of them) cleaned, with every control token cut."""
        if isinstance(value, str):
            return self._defuse_text(clean_text(value))
        if isinstance(value, Mapping):
            return {self.defuse(key): self.defuse(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.defuse(item) for item in value]
        return value

    def _defuse_text(self, text: str) -> str:
        if self._normalised and self._control.search(plain := unicodedata.normalize("NFKC", text)):
            text = plain  # such tokens are matched after normalisation, so their look-alikes count
        while self._control.search(text):  # again, for a token inside a half of another
            text = self._control.sub(_cut, text)
        return text

    def pieces(self, text: str) -> list[int | str]:
        """``text`` cut into control tokens, as ids, and what stands between them."""
        found: list[int | str] = []
        at = 0
        for match in self._control.finditer(text):
            found += [*filter(None, (text[at : match.start()],)), int(self._tokenizer.convert_tokens_to_ids(match[0]))]
            at = match.end()
        return [*found, *filter(None, (text[at:],))]

    def encode(self, text: str) -> list[int]:
        """Ids of `text` from the start of a sequence; nothing is added to it (templates write BOS themselves)."""
        return self.after("", text)

    def after(self, before: str, text: str) -> list[int]:
        """Ids of `text` as the continuation of `before`, of which the last `ANCHOR_CHARS` are looked at."""
        first, *rest = text.split(CUT)
        ids = self._continue(before.replace(CUT, "")[-ANCHOR_CHARS:], first)
        if rest:  # their true neighbours would join with them into control tokens
            newline = self._encode("\n")
            for piece, whole in zip(rest, self._encode_all(["\n" + piece for piece in rest]), strict=True):
                ids += whole[len(newline) :] if whole[: len(newline)] == newline else self._encode(piece)
        return ids

    def _continue(self, before: str, text: str) -> list[int]:
        """SentencePiece puts a space before whatever it sees first; an anchor in front keeps `text` from being that."""
        if not text:
            return []
        anchor = self._encode(before) if before else []
        whole = self._encode(before + text) if anchor else []
        return whole[len(anchor) :] if anchor and whole[: len(anchor)] == anchor else self._encode(text)

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return list(self._tokenizer(texts, **options)["input_ids"])

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _cut(match: re.Match[str]) -> str:
    token = match[0]
    middle = len(token) // 2
    return token[:middle] + CUT + token[middle:] if middle else "\ufffd"
