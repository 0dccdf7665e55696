"""Compiled loops over pixels: copies, and what `Normalizer` does, stamp by stamp.

All of them are in this one file, for the compiled code that is kept on disk is made anew when the
file of the outermost function changes, and only then. They take addresses: nothing is checked
here. `vae_astro.data.gather` calls them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from vae_astro.data.compiled import compiled

__all__ = ["CHUNK", "copy_rows", "normalize_rows"]

CHUNK = 8
"""Stamps that a thread takes at a time."""
TILE = 256
"""Pixels that one stage hands to the next; they stay in the nearest cache."""
CACHE_LINE = 64

_LINEAR, _MINMAX, _ASINH, _LOG = range(4)  # in the order of `gather.STRETCHES`
FILL_VALUE_LIMIT = 1e18
"""As `sky.FILL_VALUE_LIMIT`."""
SQRT_HALF = 0x3F3504F3
"""Bits of the float32; logarithms are taken of what lies between it and twice it."""
LN_2 = 0.6931471805599453
FAINT = 1.5625
"""Square of the argument up to which asinh is a polynomial."""
LARGEST = 3.4028234663852886e38

f4, i4, u8 = np.float32, np.int32, np.uint64


def kernel(function: Any) -> Any:
    """`compiled`, with the liberties that these computations can take."""
    # contract: a product and a sum may be rounded once. Nothing may assume that there is no NaN.
    return compiled(function, fastmath={"contract", "nsz"}, error_model="numpy")


def instruction(function: Any) -> Any:
    """A single instruction that numba has no name for."""
    return intrinsic(function)


# Memory


def _pointer_to(kind: types.Type) -> Any:
    @instruction
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.uint64), generate

    return pointer


_floats = _pointer_to(types.float32)
_bytes = _pointer_to(types.uint8)


@instruction
def _count_up(typing_context: Any, address: Any, step: Any) -> Any:
    """Add to the int64 at ``address`` and return what it was, in one step for all threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.uint64, types.int64), generate


@instruction
def _fetch_ahead(typing_context: Any, address: Any) -> Any:
    """Ask for a cache line that will be needed; an address that is not there does no harm."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@instruction
def _copy_bytes(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        target, source = (builder.inttoptr(address, pointer) for address in arguments[:2])
        copy = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, ir.IntType(64)])
        builder.call(copy, [target, source, arguments[2], ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), generate


@kernel
def copy_rows(counter: Any, addresses: Any, out: Any, n_bytes: Any) -> None:
    """See `vae_astro.data.gather.copy_rows`."""
    step = u8(4 * TILE)
    while True:
        first = _count_up(counter, np.int64(CHUNK))
        if first >= len(addresses):
            return
        for k in range(first, min(first + CHUNK, len(addresses))):
            following = addresses[min(k + 1, len(addresses) - 1)]
            target = out + u8(k) * n_bytes
            done = u8(0)
            while done < n_bytes:
                part = min(step, n_bytes - done)
                for line in range(0, part, CACHE_LINE):
                    _fetch_ahead(following + done + u8(line))
                _copy_bytes(target + done, addresses[k] + done, part)
                done += part


# Arithmetic of one pixel, polynomials fitted to be best in relative error


@kernel
def _log_of_parts(f: Any, n: Any) -> Any:
    """ln((1 + f) 2^n) for f between sqrt(1/2) - 1 and sqrt(2) - 1."""
    f2 = f * f
    p6 = f * f4(-0.07634429633617401) + f4(0.12761549651622772)
    p4 = f * f4(-0.131601944565773) + f4(0.14201761782169342)
    p2 = f * f4(-0.16623356938362122) + f4(0.20001226663589478)
    p0 = f * f4(-0.250008225440979) + f4(0.3333333134651184)
    p = (p6 * f2 + p4) * (f2 * f2) + (p2 * f2 + p0)
    return ((f * p - f4(0.5)) * f2 + f) + f4(n) * f4(LN_2)


@kernel
def _exponent(x: Any) -> Any:
    """n of x = (1 + f) 2^n, for a positive x that is neither subnormal nor infinite."""
    return i4(i4(np.float32(x).view(np.int32) - i4(SQRT_HALF)) >> i4(23))


@kernel
def _mantissa(x: Any, n: Any) -> Any:
    """1 + f of x = (1 + f) 2^n."""
    return np.int32(np.float32(x).view(np.int32) - i4(n << i4(23))).view(np.float32)


@kernel
def _log(x: Any) -> Any:
    n = _exponent(x)
    return _log_of_parts(_mantissa(x, n) - f4(1), n)


@kernel
def _log1p(x: Any) -> Any:
    """ln(1 + x) for x not below 0; what is small is not added to 1, which would round it."""
    n = _exponent(f4(1) + x)
    f = _mantissa(f4(1) + x, n) - f4(1)
    return _log_of_parts(x if n == 0 else f, n)


@kernel
def _asinh_of_faint(u: Any, z: Any) -> Any:
    """asinh(u) for u of either sign with z = u * u below `FAINT`."""
    z2 = z * z
    p6 = z * f4(0.0009775110520422459) + f4(-0.003973703365772963)
    p6 = p6 + z2 * f4(-0.0001094780964194797)
    p4 = z * f4(0.01003225613385439) + f4(-0.018565315753221512)
    p2 = z * f4(0.029085753485560417) + f4(-0.04438105970621109)
    p0 = z * f4(0.07497332990169525) + f4(-0.166665717959404)
    p = (p6 * (z2 * z2) + (p4 * z2 + p2)) * z2 + p0
    return u + u * z * p


@kernel
def _asinh_of_bright(u: Any) -> Any:
    """asinh(u) for u of either sign that is not faint."""
    size = abs(u)
    root = np.sqrt(u * u + f4(1))
    root = root if size < f4(1e9) else size  # where u * u leaves float32
    return np.copysign(_log(size + root), u)


# Stages of a tile of n pixels. The first one writes the image, the slope of the stretch for the
# noise, and the mask; masked pixels are 0 and 1. Pointers and no arrays: within a tile nothing is
# checked or counted.


@kernel
def _is_good(x: Any, limit: Any) -> Any:
    return (abs(x) < f4(FILL_VALUE_LIMIT)) & (x < limit)


@kernel
def _scale(unit: Any, a: Any) -> Any:
    """1 / (unit a), finite even if the unit is subnormal."""
    return f4(min(1.0 / (np.float64(unit) * np.float64(a)), LARGEST))


@kernel
def _linear(
    n: Any, raw: Any, zero: Any, unit: Any, limit: Any, image: Any, noise: Any, mask: Any
) -> None:
    for i in range(n):
        x = raw[i]
        good = _is_good(x, limit)
        image[i] = ((x if good else zero) - zero) / unit
        noise[i] = f4(1)
        mask[i] = good


@kernel
def _stretch_log(
    n: Any,
    raw: Any,
    zero: Any,
    unit: Any,
    a: Any,
    limit: Any,
    floor: Any,
    image: Any,
    noise: Any,
    mask: Any,
) -> None:
    scale = _scale(unit, a)
    for i in range(n):
        x = raw[i]
        good = _is_good(x, limit)
        u = ((x if good else zero) - zero) * scale
        image[i] = np.copysign(a * _log1p(abs(u)), u)
        slope = f4(1) / (f4(1) + abs(u))
        noise[i] = slope if slope > floor else floor
        mask[i] = good


@kernel
def _stretch_asinh(
    n: Any,
    raw: Any,
    zero: Any,
    unit: Any,
    a: Any,
    limit: Any,
    floor: Any,
    image: Any,
    noise: Any,
    mask: Any,
) -> Any:
    """Right for faint pixels only; how many are not."""
    scale = _scale(unit, a)
    n_bright = i4(0)
    for i in range(n):
        x = raw[i]
        good = _is_good(x, limit)
        u = ((x if good else zero) - zero) * scale
        z = u * u
        image[i] = a * _asinh_of_faint(u, z)
        slope = f4(1) / np.sqrt(z + f4(1))
        noise[i] = slope if slope > floor else floor
        mask[i] = good
        n_bright = i4(n_bright + i4(z >= f4(FAINT)))
    return n_bright


@kernel
def _stretch_asinh_of_bright(
    n: Any, raw: Any, zero: Any, unit: Any, a: Any, limit: Any, image: Any
) -> None:
    """The other pixels of the same tile: sky has no need of the logarithm, and waits for none."""
    scale = _scale(unit, a)
    for i in range(n):
        x = raw[i]
        u = ((x if _is_good(x, limit) else zero) - zero) * scale
        image[i] = a * _asinh_of_bright(u) if u * u >= f4(FAINT) else image[i]


@kernel
def _without_unknown(n: Any, raw: Any, plane: Any, out: Any) -> None:
    """Pixels of which the noise plane says nothing become NaN; ``out`` may be ``raw``."""
    for i in range(n):
        known = (plane[i] > f4(0)) & (plane[i] < f4(FILL_VALUE_LIMIT))
        out[i] = raw[i] if known else f4(np.nan)


@kernel
def _own_noise(n: Any, plane: Any, unit: Any, floor: Any, noise: Any, mask: Any) -> None:
    """Noise from a plane of it, in raw units."""
    for i in range(n):
        good = mask[i] != 0
        propagated = noise[i] * ((plane[i] if good else unit) / unit)
        propagated = propagated if propagated > floor else floor
        noise[i] = propagated if good else f4(1)


@kernel
def _sky_and_source_noise(
    n: Any,
    raw: Any,
    level: Any,
    unit: Any,
    sigma: Any,
    gain: Any,
    floor: Any,
    noise: Any,
    mask: Any,
) -> None:
    """Noise of the sky and the Poisson noise of what lies above it."""
    of_sky = (sigma / unit) * (sigma / unit)
    for i in range(n):
        good = mask[i] != 0
        light = (raw[i] if good else level) - level
        light = (light if light > f4(0) else f4(0)) / unit
        propagated = noise[i] * np.sqrt(of_sky + light / (gain * unit))
        propagated = propagated if propagated > floor else floor
        noise[i] = propagated if good else f4(1)


# Stages of a stamp


@kernel
def _turn(address: Any, size: Any, symmetry: Any, turned: Any) -> None:
    """One symmetry of a square plane; see `apply_symmetry`."""
    last = size - 1
    quarter, flipped = symmetry % 4, symmetry >= 4
    # the pixel that comes first, and the steps to the one below and to the one right of it
    if quarter == 0:
        first, down, right = 0, size, 1
    elif quarter == 1:
        first, down, right = last, -1, size
    elif quarter == 2:
        first, down, right = size * size - 1, -size, -1
    else:
        first, down, right = size * last, 1, -size
    if flipped:
        first, right = first + last * right, -right
    for i in range(size):
        row = _floats(address + u8(4 * (first + i * down)))
        to = _floats(turned + u8(4 * i * size))
        # the same thrice: neighbours are moved many at a time
        if right == 1:
            for j in range(size):
                to[j] = row[j]
        elif right == -1:
            for j in range(size):
                to[j] = row[-j]
        else:
            for j in range(size):
                to[j] = row[j * right]


@kernel
def _range(n: Any, raw: Any, limit: Any, zero: Any) -> Any:
    """Smallest good pixel and the span of all, as `Normalizer` has them for minmax."""
    low, high = f4(np.inf), f4(-np.inf)
    for i in range(n):
        x = raw[i]
        if _is_good(x, limit):
            low, high = min(low, x), max(high, x)
    span = high - low
    usable = (span > f4(0)) & (span < f4(np.inf))
    return (low if low < f4(np.inf) else zero), (span if usable else f4(1))


@kernel
def _normalize_plane(
    n: Any,
    raw: Any,
    plane: Any,
    following: Any,
    with_noise: Any,
    stretch: Any,
    a: Any,
    floor: Any,
    gain: Any,
    limit: Any,
    level: Any,
    sigma: Any,
    image: Any,
    mask: Any,
    noise: Any,
) -> None:
    """One band of one stamp, at addresses; ``following`` is the band that comes next."""
    zero, unit = level, sigma
    if stretch == _MINMAX:
        zero, unit = _range(n, _floats(raw), limit, level)
    adds_noise = with_noise or stretch == _MINMAX or gain < f4(np.inf)
    slope_floor = f4(0) if adds_noise else floor
    for start in range(0, n, TILE):
        m = min(TILE, n - start)
        offset = u8(4 * start)
        for line in range(0, 4 * m, CACHE_LINE):
            _fetch_ahead(following + offset + u8(line))
        x, out = _floats(raw + offset), _floats(image + offset)
        slope, good = _floats(noise + offset), _bytes(mask + u8(start))
        if stretch == _ASINH:
            if _stretch_asinh(m, x, zero, unit, a, limit, slope_floor, out, slope, good):
                _stretch_asinh_of_bright(m, x, zero, unit, a, limit, out)
        elif stretch == _LOG:
            _stretch_log(m, x, zero, unit, a, limit, slope_floor, out, slope, good)
        else:
            _linear(m, x, zero, unit, limit, out, slope, good)
        if with_noise:
            _own_noise(m, _floats(plane + offset), unit, floor, slope, good)
        elif adds_noise:
            _sky_and_source_noise(m, x, level, unit, sigma, gain, floor, slope, good)


@kernel
def normalize_rows(
    counter: Any,
    scratch: Any,
    addresses: Any,
    poses: Any,
    n_bands: Any,
    height: Any,
    width: Any,
    with_noise: Any,
    stretch: Any,
    a: Any,
    floor: Any,
    gain: Any,
    limit: Any,
    level: Any,
    sigma: Any,
    image: Any,
    mask: Any,
    noise: Any,
) -> None:
    """See `vae_astro.data.gather.normalize_rows`; ``scratch`` takes two planes of float32."""
    n = height * width
    turned_raw, turned_noise = scratch, scratch + u8(4 * n)
    while True:
        begin = _count_up(counter, np.int64(CHUNK))
        if begin >= len(addresses):
            return
        for k in range(begin, min(begin + CHUNK, len(addresses))):
            following = addresses[min(k + 1, len(addresses) - 1)]
            for c in range(n_bands):
                raw = addresses[k] + u8(4 * n * c)
                plane = raw + u8(4 * n * n_bands if with_noise else 0)
                if poses[k]:
                    _turn(raw, height, poses[k], turned_raw)
                    raw = turned_raw
                    if with_noise:
                        _turn(plane, height, poses[k], turned_noise)
                        plane = turned_noise
                if with_noise:
                    _without_unknown(n, _floats(raw), _floats(plane), _floats(turned_raw))
                    raw = turned_raw
                to = u8(n * (k * n_bands + c))
                _normalize_plane(
                    n,
                    raw,
                    plane,
                    following + u8(4 * n * c),
                    with_noise,
                    stretch,
                    a,
                    floor,
                    gain[c],
                    limit[c],
                    level[k, c],
                    sigma[k, c],
                    image + u8(4) * to,
                    mask + to,
                    noise + u8(4) * to,
                )
