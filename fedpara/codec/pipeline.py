"""From a state dict to a payload and back: what is the same for every codec."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
from torch import Generator, Tensor

from ..errors import CodecError, ConfigError, UpdateError
from . import entropy
from .container import OVERHEAD, fingerprint, from_bytes, reference_of, schema_hash, seal, to_bytes, unseal
from .fewbit import Gentle, is_short
from .schemes import BLOCK, Scheme, narrow

State = Mapping[str, Tensor]

_GENTLE = Gentle()
_LENGTH = struct.Struct("<Q")  # before a tensor whose scheme does not know its length beforehand


@dataclass(frozen=True)
class Codec:
    """A named way to write tensors as bytes. Holds no state: one object serves every client and thread.

    Tensors may lie on any device and in any order of keys; coding is done on the CPU.
    """

    spec: str
    scheme: Scheme
    entropy: bool = False  # whether the coded tensors are squeezed once more, without loss
    feedback: bool = False  # whether senders add what was lost to their next payload, see `encode_with_feedback`

    @property
    def exact(self) -> bool:
        """Whether `size` is the length of every payload, and not only the most that it can be."""
        return not (self.entropy or self.scheme.choices) and self.scheme.parts((1, 64)) is not None

    def size(self, like: State) -> int:
        """Length of a payload in bytes, header included, without encoding; tensors on ``meta`` will do.

        Where the values decide (not `exact`: entropy coding, schemes of variable length), the most that it can be.
        """
        chosen = [like[name] for name in self._open(like)]
        whole = sum(self._most(tensor) for tensor in like.values())
        spared = sum(map(self._most, chosen)) - len(chosen) - self.scheme.budget(sum(own.numel() for own in chosen))
        return OVERHEAD + whole - max(0, spared)

    def encode(self, state: State, *, reference: State | None = None, generator: Generator | None = None) -> bytes:
        """Write the tensors as one payload of ``size(state)`` bytes, or of at most as many where not `exact`.

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
        try:
            plan, choices = self._plan(tensors, base)
        except ValueError as error:
            raise UpdateError(f"the tensors cannot be coded as {self.spec}: {error}") from None
        packed = {name: [to_bytes(tensor)] for name, tensor in tensors.items() if plan[name] is None}
        for names, scheme in _runs(plan, tensors):
            packed |= self._packed(scheme, {name: tensors[name] for name in names}, base, draws)
        rows = [packed[name] for name in tensors]
        parts = entropy.squeeze(rows) if self.entropy else [part for row in rows for part in row]
        reference_id = fingerprint(base.values()) if base else 0
        return seal(self.spec, schema_hash(state), reference_id, [memoryview(choices), *parts])

    def decode(self, blob: bytes, like: State, *, reference: State | None = None) -> dict[str, Tensor]:
        """Read a payload into new tensors with the names, shapes, dtypes, devices and order of ``like``.

        Nothing is allocated before length, schema and checksum were found right. Values are not judged: NaN may arrive.
        Small tensors may lie in one memory: who keeps one of them alone should clone it.

        Args:
            blob: what `encode` made, or anything else.
            like: tensors of the expected names, shapes and dtypes; on ``meta`` (the result is then on the CPU) they
                need no memory.
            reference: the one that was encoded with, bit for bit.

        Raises:
            CodecError: any bytes that are not a payload of this codec for such tensors; another reference, or none.
        """
        names = sorted(like)
        most = self.size(like) - OVERHEAD
        used, body = unseal(blob, self.spec, schema_hash(like), most, exact=self.exact)
        base = self._base(like, reference if used else None, CodecError)
        if used != (fingerprint(base.values()) if base else 0):
            problem = "was made with a different reference" if reference else "needs the reference it was made with"
            raise CodecError(f"the payload {problem}: give decode the tensors that the sender had, bit for bit")
        plan, body = self._read_plan(body, like)
        if self.entropy:
            body = entropy.expand(body, [_parts(plan[name], like[name]) or () for name in names])
        bodies: dict[str, memoryview] = {}
        result: dict[str, Tensor] = {}
        name = ""
        try:
            for name in names:
                bodies[name], body = _split(body, plan[name], like[name])
                if plan[name] is None:
                    result[name] = _plain(bodies[name], like[name])
            for run, scheme in _runs(plan, {name: like[name] for name in names}):
                try:
                    result |= _unpacked(scheme, {name: like[name] for name in run}, bodies, base)
                except MemoryError:
                    raise
                except Exception:
                    for name in run:  # which it is
                        result |= _unpacked(scheme, {name: like[name]}, bodies, base)
        except MemoryError:
            raise
        except Exception as error:  # a scheme of anyone's may stumble over hostile bytes in any way
            raise CodecError(f"tensor '{name}': {error}") from error
        if body.nbytes:
            raise CodecError(f"{body.nbytes} bytes behind the last tensor")
        return {name: _placed(result[name], like[name]) for name in like}

    def scales(self, blob: bytes, like: State) -> int:
        """How many of a payload's bytes are scales; of those coded together with other numbers, their share.

        0 for a payload that is not of this codec and these tensors, as far as its length tells.
        """
        if not (self.scheme.scales or self.scheme.choices):
            return 0
        try:
            plan, body = self._read_plan(memoryview(blob)[OVERHEAD:], like)
        except CodecError:
            return 0
        schemes = [(plan[name], like[name]) for name in sorted(like)]
        rows = [(_parts(scheme, tensor) or (), scheme.scales if scheme else 0) for scheme, tensor in schemes]
        if not self.entropy:
            return min(body.nbytes, sum(sum(parts[:scales]) for parts, scales in rows))
        coded = entropy.plane_sizes(body, [parts for parts, _ in rows])
        found = 0.0
        for index, size in enumerate(coded):
            plain = sum(parts[index] for parts, _ in rows if index < len(parts))
            own = sum(parts[index] for parts, scales in rows if index < min(len(parts), scales))
            found += size * own / max(1, plain)
        return round(found)

    def find_reference(self, blob: bytes, like: State, candidates: Iterable[State]) -> State | None:
        """The one of these states that a payload is the difference to; None where it needs none.

        Raises:
            CodecError: it needs one that is not among them, or is no payload.
        """
        used = reference_of(blob)
        if used == 0:
            return None
        for candidate in candidates:
            try:
                if used == fingerprint(self._base(like, candidate, CodecError).values()):
                    return candidate
            except CodecError:  # a state of other tensors: of another run or version
                continue
        raise CodecError("the payload is the difference to a model that is not held here: it must be sent whole")

    def _scheme(self, tensor: Tensor) -> Scheme | None:
        """What codes this tensor; None where it travels as it is."""
        scheme = _GENTLE if self.scheme.gentle and is_short(tensor.shape) else self.scheme
        return scheme if tensor.is_floating_point() and tensor.dtype.itemsize > scheme.width else None

    def _open(self, like: State) -> list[str]:
        """The tensors for which a scheme is chosen by their values."""
        return [name for name in sorted(like) if self.scheme.choices and self._scheme(like[name]) is self.scheme]

    def _plan(self, tensors: State, base: State) -> tuple[dict[str, Scheme | None], bytes]:
        """What codes each tensor, and the bytes that say so where the values decide."""
        plan = {name: self._scheme(tensor) for name, tensor in tensors.items()}
        open_ones = self._open(tensors)
        chosen = self.scheme.choose([_change(tensors[name], base.get(name)) for name in open_ones]) if open_ones else []
        plan |= {name: self.scheme.choices[choice] for name, choice in zip(open_ones, chosen, strict=True)}
        return plan, bytes(chosen)

    def _read_plan(self, body: memoryview, like: State) -> tuple[dict[str, Scheme | None], memoryview]:
        """The same from a payload, and what follows."""
        plan = {name: self._scheme(tensor) for name, tensor in like.items()}
        choices, open_ones = self.scheme.choices, self._open(like)
        if body.nbytes < len(open_ones) or any(choice >= len(choices) for choice in body[: len(open_ones)]):
            raise CodecError("the choices of schemes are missing, or are none")
        plan |= {name: choices[body[index]] for index, name in enumerate(open_ones)}
        return plan, body[len(open_ones) :]

    def _packed(self, scheme: Scheme, tensors: State, base: State, generator: Generator) -> dict[str, list[memoryview]]:
        """The parts of tensors that their scheme takes together."""
        try:
            changes = [_change(tensor, base.get(name)) for name, tensor in tensors.items()]
            several = len(changes) > 1
            coded = scheme.pack_all(changes, generator) if several else [scheme.pack(changes[0], generator)]
            packed = [list(map(to_bytes, parts)) for parts in coded]
        except ValueError as error:
            if len(tensors) == 1:
                raise UpdateError(f"tensor '{next(iter(tensors))}' cannot be coded as {self.spec}: {error}") from None
            for name, tensor in tensors.items():  # which it is
                self._packed(scheme, {name: tensor}, base, generator)
            raise
        if len(tensors) == 1 and scheme.parts(changes[0].shape) is None:
            packed = [_with_length(packed[0], changes[0])]
        return dict(zip(tensors, packed, strict=True))

    def _most(self, tensor: Tensor) -> int:
        scheme = self._scheme(tensor)
        if scheme is self.scheme and scheme.choices:
            return 1 + max(sum(_parts(choice, tensor) or ()) for choice in scheme.choices)
        parts = _parts(scheme, tensor)
        return _LENGTH.size + 4 * tensor.numel() if parts is None else sum(parts)

    def _base(
        self, like: State, reference: State | None, error: type[CodecError] | type[ConfigError]
    ) -> dict[str, Tensor]:
        """The reference's tensors that differences are taken to, as float32, in the order of the payload."""
        if reference is None or not self.scheme.differences:
            return {}
        base = {}
        for name in sorted(like):
            if self._scheme(like[name]) is None:
                continue
            if name not in reference or reference[name].shape != like[name].shape:
                given = f"one of shape {tuple(reference[name].shape)}" if name in reference else "none"
                raise error(f"the reference needs a tensor '{name}' of shape {tuple(like[name].shape)}, given {given}")
            base[name] = reference[name].detach().to("cpu", torch.float32)
        return base


def _parts(scheme: Scheme | None, tensor: Tensor) -> tuple[int, ...] | None:
    return scheme.parts(tensor.shape) if scheme else (tensor.numel() * tensor.dtype.itemsize,)


def _change(tensor: Tensor, base: Tensor | None) -> Tensor:
    x = narrow(tensor, torch.float32)
    return x if base is None else x - base


def _runs(plan: Mapping[str, Scheme | None], tensors: State) -> Iterator[tuple[list[str], Scheme]]:
    """Neighbours of one scheme, in the order in which they draw random numbers; what is large, or of a length that its
    values decide, alone."""

    def together(name: str) -> Scheme | str | None:
        scheme, tensor = plan[name], tensors[name]
        alone = scheme is not None and (tensor.numel() > BLOCK or scheme.parts(tensor.shape) is None)
        return name if alone else scheme

    coded = (name for name in tensors if plan[name] is not None)
    for _, run in groupby(coded, together):
        names = list(run)
        yield names, cast(Scheme, plan[names[0]])


def _split(body: memoryview, scheme: Scheme | None, like: Tensor) -> tuple[memoryview, memoryview]:
    """The bytes of this tensor, and those of the tensors after it."""
    parts = _parts(scheme, like)
    if parts is not None:
        length = sum(parts)
        if length > body.nbytes:
            raise CodecError(f"{body.nbytes} bytes are left of its {length}")
    elif body.nbytes < _LENGTH.size:
        raise CodecError("its length is missing")
    else:
        (length,) = _LENGTH.unpack_from(body)
        body = body[_LENGTH.size :]
        if length > min(body.nbytes, 4 * like.numel()):
            raise CodecError(f"announced with {length} bytes, at most {min(body.nbytes, 4 * like.numel())} can be")
    return body[:length], body[length:]


def _unpacked(scheme: Scheme, like: State, bodies: Mapping[str, memoryview], base: State) -> dict[str, Tensor]:
    """Tensors that their scheme takes together, as float32."""
    names, shapes = list(like), [tensor.shape for tensor in like.values()]
    if len(names) > 1:
        found = scheme.unpack_all([bodies[name] for name in names], shapes)
    elif scheme.parts(shapes[0]) is None and bodies[names[0]].nbytes == 4 * shapes[0].numel():
        found = [from_bytes(bodies[names[0]], torch.float32, shapes[0])]  # as they are
    else:
        found = [scheme.unpack(bodies[names[0]], shapes[0])]
    for x, shape in zip(found, shapes, strict=True):
        if x.shape != shape:
            raise CodecError(f"of shape {tuple(x.shape)}, expected {tuple(shape)}")
    return {name: x if name not in base else x.add_(base[name]) for name, x in zip(names, found, strict=True)}


def _plain(body: memoryview, like: Tensor) -> Tensor:
    x = from_bytes(body, like.dtype, like.shape)
    if like.dtype == torch.bool and x.numel() and int(x.view(torch.uint8).max()) > 1:
        raise CodecError("a boolean is neither 0 nor 1")
    return x


def _placed(x: Tensor, like: Tensor) -> Tensor:
    x = x.to(like.dtype)
    return x if like.device.type == "meta" else x.to(like.device)


def _with_length(packed: Sequence[memoryview], x: Tensor) -> list[memoryview]:
    """Parts of a length that the receiver cannot know, with it; the numbers themselves where those are no longer."""
    length = sum(part.nbytes for part in packed)
    if length >= 4 * x.numel():
        packed, length = [to_bytes(x)], 4 * x.numel()
    return [memoryview(_LENGTH.pack(length)), *packed]


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


def encode_with_feedback(
    codec: Codec, state: State, *, reference: State | None, residual: State | None, generator: Generator
) -> tuple[bytes, dict[str, Tensor]]:
    """A payload of state + residual, and the next residual: what the payload lost of it.

    Error feedback (Seide et al. 2014; Karimireddy et al. 2019, Algorithm 2, with the difference to the reference in
    place of the gradient step): pₜ = Δₜ + eₜ is sent as C(pₜ), and eₜ₊₁ = pₜ − C(pₜ). The sender keeps the residual.
    """
    owed = residual or {}
    wanted = {name: tensor + owed[name] if name in owed else tensor for name, tensor in state.items()}
    blob = codec.encode(wanted, reference=reference, generator=generator)
    arrived = codec.decode(blob, wanted, reference=reference)
    lost = {name: tensor - arrived[name] for name, tensor in wanted.items() if tensor.is_floating_point()}
    return blob, lost
