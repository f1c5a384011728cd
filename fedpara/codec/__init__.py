"""Tensors ↔ bytes. `codec` turns a spec string into a `Codec`; `container` describes the bytes.

=============  ====================  ================================================================================
spec           bytes a number        what arrives
=============  ====================  ================================================================================
fp32           4                     every bit of a float32; float64 is narrowed; a reference is ignored
fp16           2                     11 significant bits; beyond 65504 is refused
bf16           2                     8 significant bits, the range of float32
int8           1 (+ 4 a tensor)      255 levels, unbiased stochastic rounding, one scale a tensor
int8:channel   1 (+ 4 a channel)     the same, one scale for each slice of the first dimension
=============  ====================  ================================================================================

Integers and booleans travel losslessly in every codec, and so does any float that is not wider than the codec's numbers
(a bfloat16 tensor under fp32 or fp16). `int8` has one scale a tensor because the factors of a low-rank layer are
narrow: a scale for each row of R numbers would add 4/R bytes to each.
"""

from __future__ import annotations

import sys
from types import ModuleType

from .container import OVERHEAD, schema_hash
from .pipeline import SCHEMES, Codec, codec
from .schemes import Scheme

__all__ = ["OVERHEAD", "SCHEMES", "Codec", "Scheme", "codec", "schema_hash"]


class _CallableModule(ModuleType):
    """`fedpara.codec` is this module's name and the public function's: whichever Python finds there can be called."""

    def __call__(self, spec: str) -> Codec:
        return codec(spec)


sys.modules[__name__].__class__ = _CallableModule
