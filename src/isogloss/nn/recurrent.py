"""Recurrent networks over packed streams: every utterance starts from a zero state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence


class PackedRecurrent(nn.Module):
    """An LSTM or GRU that reads each utterance from its own beginning (no state is carried from one to the next)."""

    def __init__(self, kind: str, in_width: int, width: int, num_layers: int) -> None:
        super().__init__()
        network = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.network = network(in_width, width, num_layers, batch_first=True)

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Return the outputs of the last recurrent layer, N×width."""
        filled = [n for n in sizes_B if n]
        if not filled:
            return values_ND.new_zeros(0, self.network.hidden_size)
        if min(filled) == max(filled):
            out_BSD, _ = self.network(values_ND.unflatten(0, (len(filled), -1)))
            flat_ND: Tensor = out_BSD.flatten(0, 1)
            return flat_ND
        packed, _ = self.network(pack_sequence(list(values_ND.split(filled)), enforce_sorted=False))
        return torch.cat(unpack_sequence(packed))
