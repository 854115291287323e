"""How many tokens a text can come to at most, told from its bytes: a sure limit without tokenizing."""

from __future__ import annotations

import json
import re
from typing import Any

#: what SentencePiece's tokenizers write for a space
_SPACE = "▁"


class Ceiling:
    """Of one tokenizer: every token but those in front of a text stands for at least one byte of it.

    That holds for the text as it is normalized, which may be longer than what is given, and but for the
    spaces that some tokenizers put ahead of a text, of what follows a special token, or of every word.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        self._normalizer = backend.normalizer
        added = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, filter(None, added))) or r"(?!)")
        steps = _steps(backend.pre_tokenizer)
        # tokens of a space that is put ahead; one that the vocabulary lacks is written in its bytes
        known = backend.model.token_to_id(_SPACE) is not None
        self._space = 1 if known else len(_SPACE.encode())
        # one step of several may put spaces ahead of each piece that an earlier one has made
        ahead = any(s.get("add_prefix_space") or s.get("prepend_scheme") == "always" for s in steps[1:])
        self._each = 1 + self._space if ahead else 1
        self._spaces = (_SPACE, " ") if known else (" ", _SPACE)
        self._writes_spaces = known or any(step["type"] == "Metaspace" for step in steps)

    def of(self, text: str) -> int:
        """At least as many as the tokens of ``text``, its special tokens among them."""
        # the text between special tokens is normalized, and begun, by itself
        parts = self._added.split(text)
        count = len(text.encode()) - sum(len(part.encode()) for part in parts)
        for part in parts:
            if self._normalizer is not None:
                part = self._normalizer.normalize_str(part)
            if self._writes_spaces:
                part = part.replace(*self._spaces)
            count += self._each * len(part.encode()) + self._space
        return count


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """What a pre-tokenizer does, one step after the other."""
    if pre_tokenizer is None:
        return []
    state = json.loads(pre_tokenizer.__getstate__())
    return state["pretokenizers"] if state["type"] == "Sequence" else [state]
