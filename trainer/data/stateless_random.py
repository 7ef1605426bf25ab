"""Random numbers and permutations that are functions of a key, with no state, in numpy alone.

  keys = key(seed, CLASS_ORDER, pass_number)     # integers or arrays of them
  permuted(places, size, keys)                   # where a random permutation of range(size) puts
  uniform(keys, 5)                               # numbers in [0, 1)

Any element of a permutation is found without the others, so its size costs nothing.
"""

import numpy as np

ROUNDS = 6


def key(*words: int | np.ndarray) -> np.ndarray:
    """Hashes integers, taken modulo 2^64, to a key, [...] uint64; arrays are broadcast."""
    with np.errstate(over="ignore"):
        state: np.ndarray = np.zeros((), np.uint64)
        for word in words:
            state = _mix(state ^ _bits(word))
    return state


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1), keys [...] -> [..., count] float64."""
    bits = key(keys[..., None], np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permuted(places: np.ndarray, sizes: np.ndarray | int, keys: np.ndarray) -> np.ndarray:
    """Elements of random permutations of range(size), one permutation a row.

    A permutation of the next power of two, of rounds of multiply, add and xor-shift, is applied
    until the result is below the size (cycle walking; Black and Rogaway: Ciphers with Arbitrary
    Finite Domains, 2002).

    Args:
      places: [R, N] int64, each from 0 to below its row's size.
      sizes: [R] or one for all, 1 to 2^31.
      keys: [R] or one for all.

    Returns:
      [R, N] int64; different places of a row give different elements.
    """
    rows = places.shape[0]
    sizes = np.broadcast_to(np.asarray(sizes, np.uint32), rows)
    bits = np.frexp((sizes - 1).astype(np.float64))[1]
    mask = ((1 << bits.astype(np.int64)) - 1).astype(np.uint32)
    shift = np.maximum((bits + 1) // 2, 1).astype(np.uint32)
    keys = np.broadcast_to(keys, rows)
    words = [_mix(keys + np.uint64(round_number)) for round_number in range(ROUNDS)]
    factors = [(word >> np.uint64(32)).astype(np.uint32) | 1 for word in words]
    terms = [word.astype(np.uint32) for word in words]

    def apply(x: np.ndarray, of: np.ndarray | tuple[slice, None]) -> np.ndarray:
        for factor, term in zip(factors, terms, strict=True):
            x = (x * factor[of] + term[of]) & mask[of]
            x ^= x >> shift[of]
        return x

    found = apply(places.astype(np.uint32), (slice(None), None))
    flat = found.ravel()
    outside = np.flatnonzero(found >= sizes[:, None])
    while len(outside):
        row = outside // places.shape[1]
        flat[outside] = again = apply(flat[outside], row)
        outside = outside[again >= sizes[row]]
    return found.astype(np.int64)


def _bits(word: int | np.ndarray) -> np.ndarray:
    if isinstance(word, np.ndarray):
        return word.astype(np.uint64)
    return np.asarray(int(word) % 2**64, np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood: Fast Splittable Random Numbers, 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
