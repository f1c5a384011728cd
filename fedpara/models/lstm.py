"""The stacked LSTM of the next-character task."""

from __future__ import annotations

from typing import ClassVar, cast

from torch import Tensor, nn


class LSTM(nn.Module):
    """An embedding, two LSTM layers and a linear layer (McMahan et al., 2017, section 3; LEAF, Caldas et al., 2018).

    820,185 parameters for 81 symbols. The embedding and the last layer, 3 % of them, stay dense.
    """

    keep_dense: ClassVar[tuple[str, ...]] = ("embedding", "output")

    def __init__(self, symbols: int = 81, *, embedding: int = 8, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, symbols)

    def forward(self, text: Tensor) -> Tensor:
        """Symbols (batch, length), int64 → logits of each next one (batch, length, symbols)."""
        return cast(Tensor, self.output(self.lstm(self.embedding(text))[0]))
