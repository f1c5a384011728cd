"""From a state dict to a payload and back: what is the same for every codec."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..errors import CodecError, ConfigError, UpdateError
from .container import OVERHEAD, fingerprint, from_bytes, schema_hash, seal, to_bytes, unseal
from .schemes import Cast, Int8, Scheme, narrow

State = Mapping[str, Tensor]

SCHEMES: dict[str, Scheme] = {
    "fp32": Cast(torch.float32, differences=False),  # a difference would cost it its exactness
    "fp16": Cast(torch.float16),
    "bf16": Cast(torch.bfloat16),
    "int8": Int8(),
    "int8:channel": Int8(per_channel=True),
}


def codec(spec: str) -> Codec:
    """The codec of a spec: "fp32", "fp16", "bf16", "int8" or "int8:channel".

    Raises:
        ConfigError: an unknown spec; the message names the nearest known one.
    """
    if not isinstance(spec, str) or spec not in SCHEMES:
        nearest = difflib.get_close_matches(str(spec), SCHEMES, n=1, cutoff=0.0)[0]
        raise ConfigError(f"unknown codec {spec!r}: did you mean '{nearest}'? Known are {', '.join(SCHEMES)}")
    return Codec(spec, SCHEMES[spec])


@dataclass(frozen=True)
class Codec:
    """A named way to write tensors as bytes. Holds no state: one object serves every client and thread.

    Tensors may lie on any device and in any order of keys; coding is done on the CPU.
    """

    spec: str
    scheme: Scheme

    def size(self, like: State) -> int:
        """Exact length of a payload in bytes, header included, without encoding; tensors on ``meta`` will do."""
        return OVERHEAD + sum(map(self._tensor_size, like.values()))

    def encode(self, state: State, *, reference: State | None = None, generator: Generator | None = None) -> bytes:
        """Write the tensors as one payload of ``size(state)`` bytes.

        Args:
            state: name → tensor.
            reference: tensors that the receiver has bit for bit; the difference to them is coded. "fp32" ignores it.
            generator: a CPU generator, for codecs that round at random; equal generators give equal bytes on every
                platform. Without one, the operating system seeds a fresh one, so that clients' rounding errors are
                independent and training's random numbers are not disturbed.

        Raises:
            UpdateError: a tensor that cannot be coded: not dense, beyond the codec's range, not finite where the codec
                has no symbol for it.
            ConfigError: a reference that lacks a tensor or has it in another shape, a generator of another device.
        """
        tensors = {name: _on_cpu(name, state[name]) for name in sorted(state)}
        base = self._base(tensors, reference, ConfigError)
        draws = _cpu_generator(generator)
        parts: list[memoryview] = []
        for name, tensor in tensors.items():
            try:
                packed = self._pack(tensor, base.get(name), draws)
            except ValueError as error:
                raise UpdateError(f"tensor '{name}' cannot be coded as {self.spec}: {error}") from None
            parts.extend(map(to_bytes, packed))
        return seal(self.spec, schema_hash(state), fingerprint(base.values()) if base else 0, parts)

    def decode(self, blob: bytes, like: State, *, reference: State | None = None) -> dict[str, Tensor]:
        """Read a payload into new tensors with the names, shapes, dtypes, devices and order of ``like``.

        Nothing is allocated before length, schema and checksum were found right. Values are not judged: NaN may arrive.

        Args:
            blob: what `encode` made, or anything else.
            like: tensors of the expected names, shapes and dtypes; on ``meta`` (the result is then on the CPU) they
                need no memory.
            reference: the one that was encoded with, bit for bit.

        Raises:
            CodecError: any bytes that are not a payload of this codec for such tensors; another reference, or none.
        """
        sizes = {name: self._tensor_size(like[name]) for name in sorted(like)}
        used, body = unseal(blob, self.spec, schema_hash(like), sum(sizes.values()))
        base = self._base(like, reference if used else None, CodecError)
        if used != (fingerprint(base.values()) if base else 0):
            problem = "was made with a different reference" if reference else "needs the reference it was made with"
            raise CodecError(f"the payload {problem}: give decode the tensors that the sender had, bit for bit")
        result: dict[str, Tensor] = {}
        start = 0
        for name, size in sizes.items():
            try:
                result[name] = self._unpack(body[start : start + size], like[name], base.get(name))
            except CodecError as error:
                raise CodecError(f"tensor '{name}': {error}") from None
            start += size
        return {name: result[name] for name in like}

    def _as_it_is(self, tensor: Tensor) -> bool:
        return not tensor.is_floating_point() or tensor.dtype.itemsize <= self.scheme.width

    def _tensor_size(self, tensor: Tensor) -> int:
        if self._as_it_is(tensor):
            return tensor.numel() * tensor.dtype.itemsize
        return self.scheme.size(tensor.shape)

    def _pack(self, tensor: Tensor, base: Tensor | None, generator: Generator) -> list[Tensor]:
        if self._as_it_is(tensor):
            return [tensor]
        x = narrow(tensor, torch.float32)
        return self.scheme.pack(x if base is None else x - base, generator)

    def _unpack(self, body: memoryview, like: Tensor, base: Tensor | None) -> Tensor:
        if self._as_it_is(like):
            x = from_bytes(body, like.dtype, like.shape)
            if like.dtype == torch.bool and x.numel() and int(x.view(torch.uint8).max()) > 1:
                raise CodecError("a boolean is neither 0 nor 1")
        else:
            x = self.scheme.unpack(body, like.shape)
            x = (x if base is None else x.add_(base)).to(like.dtype)
        return x if like.device.type == "meta" else x.to(like.device)

    def _base(
        self, like: State, reference: State | None, error: type[CodecError] | type[ConfigError]
    ) -> dict[str, Tensor]:
        """The reference's tensors that differences are taken to, as float32, in the order of the payload."""
        if reference is None or not self.scheme.differences:
            return {}
        base = {}
        for name in sorted(like):
            if self._as_it_is(like[name]):
                continue
            if name not in reference or reference[name].shape != like[name].shape:
                given = f"one of shape {tuple(reference[name].shape)}" if name in reference else "none"
                raise error(f"the reference needs a tensor '{name}' of shape {tuple(like[name].shape)}, given {given}")
            base[name] = reference[name].detach().to("cpu", torch.float32)
        return base


def _on_cpu(name: str, tensor: object) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
        given = f"{tensor.layout} on {tensor.device}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UpdateError(f"'{name}' cannot be coded: expected a dense tensor that holds values, given {given}")
    return tensor.detach().cpu()


def _cpu_generator(generator: Generator | None) -> Generator:
    if generator is None:
        generator = Generator()
        generator.seed()
    if generator.device.type != "cpu":
        raise ConfigError(f"codecs draw on the CPU, given a generator on {generator.device}: use torch.Generator()")
    return generator
