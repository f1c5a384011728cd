"""The classical magnifiers, as references: linear Eulerian (Wu et al. 2012) and phase-based (Wadhwa et al. 2013).

Both work on bands of spatial frequencies, here filters on the whole Fourier plane: a steerable pyramid without
decimation. Frames are (n, 3, h, w) in [−1, 1], α is (n,), and a motion δ becomes (1 + α) δ as it does for the networks.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

OCTAVE = 0.5  # width of a band
BANDS = 9  # down to a 23rd of the Nyquist frequency; what is lower moves as frame B does
ORIENTATIONS = 8
SMOOTHING = 1.0  # of phase differences, in wavelengths of their band
AROUND = 24  # pixels reflected around a frame, which the Fourier transform takes for periodic


def none(a: Tensor, b: Tensor, alpha: Tensor, motion: Tensor) -> Tensor:
    """Frame B as it is."""
    return b


def linear(a: Tensor, b: Tensor, alpha: Tensor, motion: Tensor) -> Tensor:
    """B + Σ α_λ (B − A)_λ over bands of wavelength λ, with (1 + α_λ) δ ≤ λ/8 (Wu et al., Equation 14).

    `motion`, (n,), is δ in pixels: known here, where a user would have to guess it.
    """
    difference, size = _transformed(b - a)
    low, bands, high = _radial(size)
    lengths = [4 * _wavelengths()[-1], *_wavelengths(), 2.0]
    gains = torch.stack([torch.minimum(alpha, (length / (8 * motion) - 1).clamp(min=0)) for length in lengths])
    masks = torch.stack([low, *bands, high]).square()
    return b + _back(difference * torch.einsum("sn,shw->nhw", gains, masks)[:, None], size, b.shape)


def phase(a: Tensor, b: Tensor, alpha: Tensor, motion: Tensor) -> Tensor:
    """B with the phase of every band and orientation moved on by α times its change from A (Wadhwa et al., section 3).

    S_b exp(i α Δφ), Δφ = arg(S_b S̄_a), smoothed with the amplitude as weight: G ∗ (|S_b| Δφ) / G ∗ |S_b| (section 3.4).
    """
    before, size = _transformed(a)
    after, _ = _transformed(b)
    low, bands, high = _radial(size)
    result = after * (low.square() + high.square())
    factor = alpha.view(-1, 1, 1, 1)
    for mask, length in zip(bands, _wavelengths(), strict=True):
        blur = _gaussian(size, SMOOTHING * length)
        for angular in _oriented(size):
            pick = mask * angular
            own, other = torch.fft.ifft2(after * pick), torch.fft.ifft2(before * pick)
            weight = own.abs() + 1e-8
            change = torch.angle(own * other.conj())
            smooth = _filtered(weight * change, blur) / _filtered(weight, blur).clamp(min=1e-8)
            result = result + 2 * torch.fft.fft2(own * torch.exp(1j * factor * smooth)) * pick
    return _back(result, size, b.shape)


BASELINES = {"no magnification": none, "linear Eulerian": linear, "phase-based": phase}


def _transformed(frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The spectrum of frames with reflected surroundings, and its size."""
    around = min(AROUND, *(side - 1 for side in frames.shape[2:]))
    wide = F.pad(frames, (around,) * 4, mode="reflect")
    return torch.fft.fft2(wide), (wide.shape[2], wide.shape[3])


def _back(spectrum: Tensor, size: tuple[int, int], shape: torch.Size) -> Tensor:
    top, left = ((whole - part) // 2 for whole, part in zip(size, shape[2:], strict=True))
    return torch.fft.ifft2(spectrum).real[:, :, top : top + shape[2], left : left + shape[3]]


def _filtered(image: Tensor, spectrum: Tensor) -> Tensor:
    """A real image under a filter that is real and even, given by its whole spectrum (h, w)."""
    half = spectrum[:, : spectrum.shape[1] // 2 + 1]
    return torch.fft.irfft2(torch.fft.rfft2(image) * half, s=image.shape[2:])


def _wavelengths() -> list[float]:
    """Of the middle of each band, in pixels, the shortest first."""
    return [2.0 * 2 ** (OCTAVE * (band + 0.5)) for band in range(BANDS)]


@lru_cache(maxsize=8)
def _polar(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Radius, 1 at the Nyquist frequency, and angle of every frequency (h, w)."""
    rows, columns = (2 * torch.fft.fftfreq(side) for side in size)
    return torch.hypot(rows[:, None], columns[None]), torch.atan2(rows[:, None], columns[None])


@lru_cache(maxsize=8)
def _radial(size: tuple[int, int]) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Low-pass, bands from high to low, and high-pass masks (h, w); their squares sum to 1."""
    octaves = _polar(size)[0].clamp(min=1e-6).log2()

    def above(cut: float) -> Tensor:
        """1 over the frequency 2^cut, 0 a band's width under it, a cosine between them."""
        return torch.cos(math.pi / 2 * ((cut - octaves) / OCTAVE).clamp(0, 1))

    high = [above(-OCTAVE * band) for band in range(BANDS + 1)]
    low = [(1 - mask.square()).clamp(min=0).sqrt() for mask in high]
    return low[-1], tuple(low[band] * high[band + 1] for band in range(BANDS)), high[0]


@lru_cache(maxsize=8)
def _oriented(size: tuple[int, int]) -> tuple[Tensor, ...]:
    """cosⁿ⁻¹(θ − πk/n) on the half plane around πk/n: squares of both halves of all n sum to 1."""
    order = ORIENTATIONS - 1
    scale = 2**order * math.factorial(order) / math.sqrt(ORIENTATIONS * math.factorial(2 * order))
    found = []
    for place in range(ORIENTATIONS):
        apart = torch.remainder(_polar(size)[1] - math.pi * place / ORIENTATIONS + math.pi, 2 * math.pi) - math.pi
        found.append(torch.where(apart.abs() < math.pi / 2, scale * apart.cos() ** order, torch.zeros(())))
    return tuple(found)


@lru_cache(maxsize=64)
def _gaussian(size: tuple[int, int], sigma: float) -> Tensor:
    """The spectrum of a Gaussian of this deviation in pixels."""
    return torch.exp(-0.5 * (math.pi * sigma * _polar(size)[0]).square())
