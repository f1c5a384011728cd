"""Codecs and entropy coders on a real update: `python -m simulations.benchmarks.codecs --help`.

A client of a recipe trains; the difference that its last round made is coded. Speeds are bytes of fp32 a second of this
thread's own processor time, over the same tensors repeated to 16 MiB. Errors are shares of the difference's energy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from client.training import train
from fedpara.app import find_recipe
from fedpara.codec import codec
from fedpara.codec.fewbit import Grouped
from fedpara.codec.symbols import pack_symbols, unpack_symbols
from fedpara.config import read_recipe
from fedpara.sharing import shared_state
from fedpara.task import build_model, build_task

State = dict[str, Tensor]

FEW_BITS = ("int4", "int2", "ternary", "sign:unbiased", "sign")
SPECS = ("fp32", "fp16", *(s + e for s, e in product(("int8", *FEW_BITS, "topk:0.01"), ("", "+entropy"))))
SPEED_BYTES = 16 * 2**20
REPEATS = 3


def difference(name: str, data_dir: str | None, rounds: int, epochs: int) -> State:
    """What the last of some rounds changed in the shared floating tensors of the recipe's first client."""
    recipe = read_recipe(find_recipe(name), {"training": {"epochs": epochs}})
    task = build_task(recipe, data_dir=data_dir)
    model = build_model(recipe, task)
    data = task.client_data(task.population(recipe.clients)[0], recipe.clients)
    generator = torch.Generator().manual_seed(recipe.seed)
    before: State = {}
    for round in range(1, rounds + 1):
        before = {key: value.clone() for key, value in shared_state(model).items() if value.is_floating_point()}
        train(task, model, data, recipe.training, round=round, generator=generator, device=torch.device("cpu"))
    after = shared_state(model)
    return {key: after[key].detach() - value for key, value in before.items()}


def repeated(state: State) -> State:
    """The state's tensors, again and again, until they fill `SPEED_BYTES`."""
    once = 4 * sum(tensor.numel() for tensor in state.values())
    return {f"{copy}.{key}": value for copy in range(-(-SPEED_BYTES // once)) for key, value in state.items()}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Least processor time of a few runs in seconds, and what came out."""
    least, result = float("inf"), None
    for _ in range(REPEATS):
        start = time.thread_time()
        result = work()
        least = min(least, time.thread_time() - start)
    return least, result


def spec_row(spec: str, state: State, many: State) -> str:
    """Bits, error and speed of one codec."""
    coder = codec(spec)
    numbers = sum(tensor.numel() for tensor in state.values())
    blob = coder.encode(state, generator=torch.Generator().manual_seed(0))
    error = energy({key: value - state[key] for key, value in coder.decode(blob, state).items()}) / energy(state)
    encoding, large = timed(lambda: coder.encode(many, generator=torch.Generator().manual_seed(0)))
    decoding, _ = timed(lambda: coder.decode(large, many))
    bytes_in = 4 * sum(tensor.numel() for tensor in many.values())
    bits = 8 * len(blob) / numbers
    speeds = f"{bytes_in / encoding / 1e6:.0f} | {bytes_in / decoding / 1e6:.0f}"
    return f"| {spec} | {bits:.3f} | {32 / bits:.1f} | {error:.2g} | {speeds} |"


def energy(state: State) -> float:
    """Sum of squares."""
    return sum(float(tensor.double().square().sum()) for tensor in state.values())


def coder_rows(spec: str, state: State) -> Iterator[str]:
    """Bits of each entropy coder on a spec's symbols, and its speed on as many of their kind as `SPEED_BYTES` give."""
    scheme = codec(spec).scheme
    assert isinstance(scheme, Grouped)
    flat = torch.cat([tensor.reshape(-1) for tensor in state.values() if tensor.dim() > 1])
    packed = scheme.pack(flat, torch.Generator().manual_seed(0))[2]
    symbols = unpack_symbols(packed, len(flat), scheme.levels)
    shares = (torch.bincount(symbols.int(), minlength=scheme.levels).double() / len(flat)).numpy()
    entropy = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    yield f"| {spec} | entropy of single symbols | {entropy:.3f} | | |"
    # in no order that a coder could find again
    many = symbols[torch.randint(len(flat), (SPEED_BYTES // 4,), generator=torch.Generator().manual_seed(1))]
    small, large = coders(symbols, shares, scheme.levels), coders(many, shares, scheme.levels)
    for name, (encode, decode) in large.items():
        encoding, coded = timed(encode)
        decoding, _ = timed(lambda decode=decode, coded=coded: decode(coded))
        bits = 8 * memoryview(small[name][0]()).nbytes / len(flat)
        speeds = f"{SPEED_BYTES / encoding / 1e6:.0f} | {SPEED_BYTES / decoding / 1e6:.0f}"
        yield f"| {spec} | {name} | {bits:.3f} | {speeds} |"


Coder = tuple[Callable[[], Any], Callable[[Any], Any]]


def coders(symbols: Tensor, shares: np.ndarray[Any, Any], levels: int) -> dict[str, Coder]:
    """What is compared."""
    packed = pack_symbols(symbols, levels)
    return {
        "zstd 1, symbols packed": zstd(packed, 1),
        "zstd 1, a byte a symbol": zstd(symbols, 1),
        "zstd 9, symbols packed": zstd(packed, 9),
        **constriction_coders(symbols.numpy().astype(np.int32), shares),
    }


def zstd(symbols: Tensor, level: int) -> Coder:
    """zstandard, its window as the codec sets it."""
    raw = symbols.numpy().tobytes()
    parameters = zstandard.ZstdCompressionParameters.from_level(level, window_log=17, min_match=7)
    return (
        lambda: zstandard.ZstdCompressor(compression_params=parameters).compress(raw),
        lambda coded: zstandard.ZstdDecompressor().decompress(coded, max_output_size=len(raw)),
    )


def constriction_coders(symbols: np.ndarray[Any, Any], shares: np.ndarray[Any, Any]) -> dict[str, Coder]:
    """constriction's asymmetric numeral system and range coder, where it is installed: `pip install constriction`."""
    try:
        import constriction
    except ImportError:
        return {}
    stack, queue = constriction.stream.stack, constriction.stream.queue
    categorical = constriction.stream.model.Categorical(shares.astype(np.float32), perfect=False)

    def ans() -> Any:
        coder = stack.AnsCoder()
        coder.encode_reverse(symbols, categorical)
        return coder.get_compressed()

    def ranges() -> Any:
        coder = queue.RangeEncoder()
        coder.encode(symbols, categorical)
        return coder.get_compressed()

    return {
        "constriction, ANS": (ans, lambda coded: stack.AnsCoder(coded).decode(categorical, len(symbols))),
        "constriction, range": (ranges, lambda coded: queue.RangeDecoder(coded).decode(categorical, len(symbols))),
    }


def group_rows(spec: str, state: State) -> Iterator[str]:
    """Bits and error of one scheme by the size of its groups."""
    numbers = sum(tensor.numel() for tensor in state.values())
    for group in (16, 32, 64, 128, 256, 1024, 4096):
        bits = []
        for coder in (codec(f"{spec}:{group}"), codec(f"{spec}:{group}+entropy")):
            blob = coder.encode(state, generator=torch.Generator().manual_seed(0))
            bits.append(f"{8 * len(blob) / numbers:.2f}")
            decoded = coder.decode(blob, state)
        error = energy({key: value - state[key] for key, value in decoded.items()}) / energy(state)
        yield f"| {spec} | {group} | {' | '.join(bits)} | {error:.2g} |"


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    state = difference(chosen.recipe, chosen.data_dir, chosen.rounds, chosen.epochs)
    many = repeated(state)
    print(f"{chosen.recipe}: {sum(t.numel() for t in state.values()):,} numbers in {len(state)} tensors\n")
    print("| spec | bits a number | times fewer | error | encode, MB/s | decode, MB/s |\n|---|---|---|---|---|---|")
    for spec in SPECS:
        print(spec_row(spec, state, many), flush=True)
    print("\n| symbols of | coder | bits a number | encode, MB/s | decode, MB/s |\n|---|---|---|---|---|")
    for spec in ("int8:4096", "int4", "int4:4096", "int2", "ternary"):
        for row in coder_rows(spec, state):
            print(row, flush=True)
    print("\n| spec | group | bits a number | with +entropy | error |\n|---|---|---|---|---|")
    for spec in FEW_BITS:
        for row in group_rows(spec, state):
            print(row, flush=True)


if __name__ == "__main__":
    main()
