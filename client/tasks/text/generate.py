"""Text from a trained network, a character at a time."""

from __future__ import annotations

import torch
from torch import nn

from fedpara.data.text import UNKNOWN, WINDOW, decode, encode
from fedpara.seeds import generator_for


def generate(model: nn.Module, prompt: str, length: int, *, temperature: float, seed: int) -> str:
    """What the network writes after a prompt: p(next) = softmax(logits / temperature), the likeliest at temperature 0.

    The network sees the last 80 characters, as where it is judged. Characters outside the alphabet are never written.
    """
    generator = generator_for(seed, "generate")
    text = torch.from_numpy(encode(prompt or "\n")).long()
    written: list[int] = []
    with torch.no_grad():
        for _ in range(length):
            logits = model(text[None, -WINDOW:])[0, -1].double()
            logits[UNKNOWN] = -torch.inf
            if temperature:
                weights = ((logits - logits.max()) / temperature).exp()
                symbol = torch.multinomial(weights, 1, generator=generator)
            else:
                symbol = logits.argmax()[None]
            text = torch.cat([text[-WINDOW:], symbol])
            written.append(int(symbol))
    return decode(written)
