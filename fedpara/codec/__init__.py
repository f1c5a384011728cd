"""Tensors ↔ bytes. `codec` turns a spec string into a `Codec`; `container` describes the bytes.

=============  ====================  ================================================================================
spec           bits a number         what arrives
=============  ====================  ================================================================================
fp32           32                    every bit of a float32; float64 is narrowed; a reference is ignored
fp16           16                    11 significant bits; beyond 65504 is refused
bf16           16                    8 significant bits, the range of float32
int8           8 (+ 32 a tensor)     255 levels, unbiased stochastic rounding, one scale a tensor
int8:channel   8 (+ 32 a channel)    the same, one scale for each slice of the first dimension
int4           4 + 8/32              15 levels, unbiased, one scale for 32 numbers
int2           2 + 8/16              4 levels, unbiased; a zero arrives as one of the two small levels
ternary        1.6 + 8/32            −s, 0 or s, unbiased (TernGrad)
sign:unbiased  1 + 8/16              −s or s, unbiased
sign           1 + 8/128             the sign times the mean magnitude; biased, for use with error feedback
topk:0.01      ≈ 0.25                the largest 1 %, the others as zero; biased, for use with error feedback
powersgd:2     16·R(m + n) / mn      a product of two matrices of R columns; biased, for use with error feedback
auto:3         3 on average          a byte says what each tensor goes as: none, ternary, int2, int4 or int8, by error
=============  ====================  ================================================================================

``int4:128`` gives another group's size, from 8 to 65536 (``int8:64`` too); ``int4+entropy`` codes the symbols and
scales once more without loss, and its payloads' length then depends on the values. ``topk:0.01+feedback`` has senders
keep what a payload lost and add it to their next one: for schemes that are biased. Installed packages add specs of
their own (`specs.codec`, `Scheme`). docs/codecs.md has measurements.

Integers and booleans travel losslessly in every codec, and so does any float that is not wider than the codec's numbers
(a bfloat16 tensor under fp32 or fp16). Vectors of up to 4096 numbers and tensors of fewer than 64 travel as unbiased
bfloat16 where the codec has fewer than 8 bits or groups (`fewbit.Gentle`): biases and norms are few and matter much.
`int8` has one scale a tensor because the factors of a low-rank layer are narrow: a scale for each row of R numbers
would add 4/R bytes to each.
"""

from __future__ import annotations

import sys
from types import ModuleType

from .container import OVERHEAD, schema_hash
from .pipeline import Codec, encode_with_feedback
from .schemes import Scheme
from .specs import SCHEMES, codec

__all__ = ["OVERHEAD", "SCHEMES", "Codec", "Scheme", "codec", "encode_with_feedback", "schema_hash"]


class _CallableModule(ModuleType):
    """`fedpara.codec` is this module's name and the public function's: whichever Python finds there can be called."""

    def __call__(self, spec: str) -> Codec:
        return codec(spec)


sys.modules[__name__].__class__ = _CallableModule
