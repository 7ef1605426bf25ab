"""Random numbers and permutations as pure functions of a key, without state, in numpy.

  keys = key(seed, CLASS_ORDER, pass_number)     # integers, or arrays of integers
  permuted(places, size, keys)                   # elements of a random permutation of range(size)
  uniform(keys, 5)                               # numbers in [0, 1)

Each element of a permutation is computed without the others, so that its cost does not depend on
the size of the permutation.
"""

import numpy as np

ROUNDS = 6


def key(*words: int | np.ndarray) -> np.ndarray:
    """Hashes integers to a key.

    Args:
      words: integers of any size, which are taken modulo 2^64, or integer arrays that broadcast.

    Returns:
      [...] uint64, of the broadcast shape.
    """
    with np.errstate(over="ignore"):
        state: np.ndarray = np.zeros((), np.uint64)
        for word in words:
            state = _mix(state ^ _bits(word))
    return state


def uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """Random numbers in [0, 1): keys [...] -> [..., count] float64."""
    bits = key(keys[..., None], np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permuted(places: np.ndarray, sizes: np.ndarray | int, keys: np.ndarray) -> np.ndarray:
    """Elements of random permutations of range(size), one permutation for each row.

    Rounds of multiply, add and xor-shift permute the range up to the next power of two. They are
    applied again until the result is below the size (cycle walking; Black and Rogaway: Ciphers with
    Arbitrary Finite Domains, 2002).

    Args:
      places: [R, N] int64, positions in the permutation, each 0 to below the size of its row.
      sizes: [R], or one size for all rows, 1 to 2^31.
      keys: [R] uint64, or one key for all rows.

    Returns:
      [R, N] int64. Different positions in a row give different elements.
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

    def apply(x: np.ndarray, row: np.ndarray | tuple[slice, None]) -> np.ndarray:
        """Permutes x, whose elements belong to the permutations of these rows."""
        for factor, term in zip(factors, terms, strict=True):
            x = (x * factor[row] + term[row]) & mask[row]
            x ^= x >> shift[row]
        return x

    elements = apply(places.astype(np.uint32), (slice(None), None))
    flat = elements.ravel()
    outside = np.flatnonzero(elements >= sizes[:, None])
    while len(outside):
        row = outside // places.shape[1]
        flat[outside] = again = apply(flat[outside], row)
        outside = outside[again >= sizes[row]]
    return elements.astype(np.int64)


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
