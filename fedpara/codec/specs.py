"""What a codec is asked for by: the built-in specs, their options, and those that installed packages add."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points

import torch

from ..errors import ConfigError
from .auto import Auto
from .fewbit import Grouped, ScaledSign
from .lowrank import PowerSGD
from .pipeline import Codec
from .schemes import BLOCK, Cast, Int8, Scheme
from .sparse import TopK

ENTRY_POINTS = "fedpara.codecs"
SUFFIXES = ("entropy", "feedback")

SCHEMES: Mapping[str, Scheme] = {
    "fp32": Cast(torch.float32, differences=False),  # a difference would cost it its exactness
    "fp16": Cast(torch.float16),
    "bf16": Cast(torch.bfloat16),
    "int8": Int8(),
    "int8:channel": Int8(per_channel=True),
    "int4": Grouped(15, group=32),
    "int2": Grouped(4, group=16),
    "ternary": Grouped(3, group=32),
    "sign": ScaledSign(group=128),
    "sign:unbiased": Grouped(2, group=16),
    "topk:0.01": TopK(0.01),
    "powersgd:2": PowerSGD(2),
    "auto:3": Auto(3.0),
}

_BY_GROUP: Mapping[str, Callable[[int], Scheme]] = {
    "int8": lambda group: Grouped(255, group),
    "int4": lambda group: Grouped(15, group),
    "int2": lambda group: Grouped(4, group),
    "ternary": lambda group: Grouped(3, group),
    "sign": ScaledSign,
    "sign:unbiased": lambda group: Grouped(2, group),
}


def codec(spec: str) -> Codec:
    """The codec of a spec, e.g. "fp32", "int8", "int4:128", "int4+entropy", "topk:0.01+feedback+entropy".

    Built-in names come first, then entry points of the group ``fedpara.codecs``: a `Scheme` class under the name of the
    spec's first word, made without arguments, or with what follows the first colon.

    Raises:
        ConfigError: an unknown spec; the message names the nearest known one. An option out of its range.
    """
    name, *suffixes = spec.split("+") if isinstance(spec, str) else [""]
    fit = len(set(suffixes)) == len(suffixes) and set(suffixes) <= set(SUFFIXES)
    scheme = _scheme(name) if name and fit else None
    if scheme is None:
        raise ConfigError(f"unknown codec {spec!r}: did you mean '{_nearest(str(spec))}'? Known are {_known()}")
    if "entropy" in suffixes and (isinstance(scheme, Cast) or (scheme.parts((1, 64)) is None and not scheme.choices)):
        raise ConfigError(f"'{name}' has no symbols to code, given {spec!r}: use '{name}', or '+entropy' after int4")
    if "feedback" in suffixes and scheme is SCHEMES["fp32"]:
        raise ConfigError(f"'{name}' loses nothing that could be fed back, given {spec!r}: use '{name}'")
    return Codec(spec, scheme, entropy="entropy" in suffixes, feedback="feedback" in suffixes)


def _scheme(name: str) -> Scheme | None:
    if name in SCHEMES:
        return SCHEMES[name]
    family, _, option = name.rpartition(":")
    if family in _BY_GROUP and option.isdecimal():
        _check(8 <= int(option) <= BLOCK, f"groups have from 8 to {BLOCK} numbers, given {option} in '{name}'")
        return _BY_GROUP[family](int(option))
    if family in _BY_OPTION:
        return _BY_OPTION[family](option, name)
    first, colon, rest = name.partition(":")
    for point in _added():
        if point.name == first:
            scheme: Scheme = point.load()(*([rest] if colon else []))
            return scheme
    return None


def _top_k(option: str, name: str) -> Scheme:
    share = _number(option)
    _check(0 < share <= 1, f"topk sends a share above 0 and up to 1 of the numbers, given '{name}': try 'topk:0.01'")
    return TopK(share)


def _power_sgd(option: str, name: str) -> Scheme:
    rank = int(option) if option.isdecimal() else 0
    _check(1 <= rank <= 1024, f"powersgd takes a rank from 1 to 1024, given '{name}': try 'powersgd:2'")
    return PowerSGD(rank)


def _auto(option: str, name: str) -> Scheme:
    bits = _number(option)
    _check(0 < bits <= 16, f"auto takes the bits of a number on average, up to 16, given '{name}': try 'auto:3'")
    return Auto(bits)


_BY_OPTION: Mapping[str, Callable[[str, str], Scheme]] = {"topk": _top_k, "powersgd": _power_sgd, "auto": _auto}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _check(right: bool, message: str) -> None:
    if not right:
        raise ConfigError(message)


def _added() -> list[EntryPoint]:
    return sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)


def _names() -> list[str]:
    return [*SCHEMES, *(point.name for point in _added())]


def _nearest(spec: str) -> str:
    name, *suffixes = spec.split("+")
    nearest = difflib.get_close_matches(name, _names(), n=1, cutoff=0.0)[0]
    matches = [difflib.get_close_matches(suffix, SUFFIXES, n=1, cutoff=0.0) for suffix in suffixes if suffix]
    fit = [] if isinstance(SCHEMES.get(nearest), Cast) else list(dict.fromkeys(match[0] for match in matches if match))
    return "+".join([nearest, *fit])


def _known() -> str:
    return (
        f"{', '.join(_names())}; a group's size may follow, as in 'int4:128', '+entropy' any with few bits, "
        "and '+feedback' any that rounds"
    )
