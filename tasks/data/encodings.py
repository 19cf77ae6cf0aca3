"""Encoded rows in flat arrays, which take an eighth of what lists of them do."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from resprout.tasks.data.template import Encoded


class Encodings(Sequence[Encoded]):
    """Token sequences, cut from one array of tokens when they are asked for.

    Arrays by row: `ends` of its tokens in `ids`, `prompts` the tokens before its response, `lengths` all its
    tokens. `ids` may be mapped to memory from a file.
    """

    def __init__(self, ids: NDArray[np.int32], ends: NDArray[np.int64], prompts: NDArray[np.int32]) -> None:
        self.ids, self.ends, self.prompts = ids, ends, prompts
        self.lengths: NDArray[np.int64] = np.diff(ends, prepend=0)

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> Self:
        """The rows, held in memory."""
        ids, ends, prompts = array("i"), array("q"), array("i")
        for row in rows:
            ids.extend(row.prompt_ids)
            ids.extend(row.response_ids)
            ends.append(len(ids))
            prompts.append(len(row.prompt_ids))
        return cls(np.asarray(ids), np.asarray(ends), np.asarray(prompts))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        tokens, prompt = self.tokens(index).tolist(), int(self.prompts[index])
        return Encoded(tokens[:prompt], tokens[prompt:])

    def tokens(self, index: int) -> NDArray[np.int32]:
        """Prompt and response of a row."""
        end = int(self.ends[index])
        return self.ids[end - int(self.lengths[index]) : end]
