#!/usr/bin/env python3
"""Draw tokens by the definition in src/backend/cpu/sample, written a second time in numpy.

Prints the token ids that the test `draws_are_fixed_for_all_time` expects. Every operation is a separate float32
operation with round-to-nearest, as on any device, so the two must agree bit by bit.

Needs: pip install numpy
"""

import numpy

F = numpy.float32
MASK_64 = (1 << 64) - 1


def splitmix_logits(seed: int, vocab_size: int) -> numpy.ndarray:
    """The test's random logits."""
    logits = []
    for _ in range(vocab_size):
        total = 0.0
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) & MASK_64
            x = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
            x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
            total += ((x ^ (x >> 31)) >> 11) / 2.0**53
        logits.append(total * 10.0 - 20.0)
    return numpy.array(logits).astype(F)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 (Salmon et al. 2011)."""
    for _ in range(10):
        product0, product1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (product1 >> 32) ^ counter[1] ^ key[0],
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ counter[3] ^ key[1],
            product0 & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def token_bits(seed: int, output_index: int, token: int) -> int:
    key = [seed & 0xFFFFFFFF, seed >> 32]
    return philox([16 * (token // 64) + token % 16, output_index, 0, 0], key)[token // 16 % 4]


def polynomial(x: numpy.ndarray, coefficients: list[float]) -> numpy.ndarray:
    """Horner's scheme, highest power first."""
    value = F(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + F(coefficient)
    return value


LN_2_HIGH, LN_2_LOW = F(0.6933594), F(-2.1219444e-4)


def exp_nonpositive(x: numpy.ndarray) -> numpy.ndarray:
    x = numpy.where(x > F(-87), x, F(-87))
    power = (x * F(numpy.log2(numpy.e)) + F(12582912)) - F(12582912)
    r = (x - power * LN_2_HIGH) - power * LN_2_LOW
    p = polynomial(r, [1.3814599e-3, 8.368717e-3, 4.166839e-2, 1.6666521e-1, 4.9999993e-1])
    return numpy.ldexp(r * r * p + r + F(1), power.astype(numpy.int32)).astype(F)


def ln_positive(x: numpy.ndarray) -> numpy.ndarray:
    offset = x.view(numpy.uint32) - numpy.uint32(0x3F3504F3)
    power = (offset.view(numpy.int32) >> 23).astype(F)
    f = ((offset & numpy.uint32(0x7FFFFF)) + numpy.uint32(0x3F3504F3)).view(F) - F(1)
    p = polynomial(
        f,
        [-7.63449e-2, 1.2761973e-1, -1.3160368e-1, 1.4201718e-1]
        + [-1.6623336e-1, 2.0001228e-1, -2.5000822e-1, 3.3333332e-1],
    )
    tail = f * f * (f * p - F(0.5)) + power * LN_2_LOW
    return power * LN_2_HIGH + (f + tail)


def gumbel(bits: numpy.ndarray) -> numpy.ndarray:
    v = ((bits >> 1).astype(numpy.int32).astype(F) + F(0.5)) * F(2.0**-31)
    v = numpy.minimum(v, F(1 - 2.0**-24))
    rest = F(1) - v
    with numpy.errstate(invalid="ignore"):
        exponential = numpy.where(rest == 1, v, -ln_positive(rest) * v / (F(1) - rest))
    return -ln_positive(exponential.astype(F))


def draw(logits, seed, output_index, temperature, top_k=0, top_p=1.0, min_p=0.0):
    logits = logits.copy()
    if 0 < top_k < len(logits):
        logits[logits < numpy.sort(logits)[-top_k]] = -numpy.inf
    scaled = (logits - logits.max()) / F(temperature)
    weights = (exp_nonpositive(scaled) * F(2**30)).astype(numpy.int64)
    allowed = weights >= int(numpy.ceil(float(F(min_p)) * 2**30))
    if top_p < 1:
        target = int(numpy.ceil(float(F(top_p)) * float(weights.sum())))
        falling = numpy.sort(weights)[::-1]
        allowed &= weights >= falling[numpy.searchsorted(numpy.cumsum(falling), target)]
    bits = [token_bits(seed, output_index, token) for token in range(len(logits))]
    scores = numpy.where(allowed, scaled + gumbel(numpy.array(bits, numpy.uint32)), F(-numpy.inf))
    return int(scores.argmax())


if __name__ == "__main__":
    logits = splitmix_logits(8, 1000)
    print([draw(logits, 0x0123456789ABCDEF, index, 2.0) for index in range(8)])
    print([draw(logits, 42, index, 3.0, top_k=50, top_p=0.9) for index in range(8)])
    print([draw(logits, 43, index, 3.0, top_p=0.8, min_p=0.1) for index in range(8)])
