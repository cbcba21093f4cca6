"""Time and memory of exact retrieval among many items, beside the matmul limit and FAISS.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --items 1000000 --queries 10000 --width 512 --out retrieval.json

`search.rank` (exact, ties against the model) and `search.ranks` on this machine's devices; FAISS's
flat index (float32, all threads) where it is installed; and a plain float32 matmul of a tile of the
same shapes, timed in the same rounds, scaled to all queries and items: no exact search can be
faster. Items and queries are unit vectors around shared means, as embeddings are; each query has
one right item. "memory" is the growth of the process's peak beside the vectors themselves. Exits 1
if the rankings differ where similarities differ by more than rounding.
"""

import argparse
import json
import pathlib
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from big_mm import search
from big_mm.metrics.recall import SameId

TILE = 2048


def vectors(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Unit vectors that share a direction, in parts, so that no float64 copy is made."""
    out = np.empty((count, width), np.float32)
    mean = rng.normal(size=width).astype(np.float32)
    for start in range(0, count, 2**16):
        part = rng.standard_normal((min(2**16, count - start), width), np.float32) + mean
        out[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return out


def matmul_seconds(queries: np.ndarray, gallery: np.ndarray) -> float:
    """Of all similarities, from a tile of each."""
    q, g = jnp.asarray(queries[:TILE]), jnp.asarray(gallery[:TILE])
    product = jax.jit(lambda q, g: jnp.matmul(q, g.T, precision="highest"))
    product(q, g).block_until_ready()
    begun = time.perf_counter()
    product(q, g).block_until_ready()
    tiles = len(queries) / len(q) * len(gallery) / len(g)
    return (time.perf_counter() - begun) * tiles


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    gallery = vectors(rng, arguments.items, arguments.width)
    own = rng.integers(arguments.items, size=arguments.queries)
    noise = rng.standard_normal((arguments.queries, arguments.width), np.float32)
    queries = gallery[own] + 0.08 * noise
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    relevance = SameId(own, np.arange(arguments.items))
    programs = {"rank": lambda: search.rank(queries, gallery, relevance, arguments.k)}
    ranking = programs["rank"]()
    programs["rank and ranks"] = lambda: search.ranks(
        queries, gallery, relevance, programs["rank"]()
    )
    try:
        import faiss
    except ImportError:
        print("faiss is not installed: no column for it (pip install faiss-cpu)", file=sys.stderr)
    else:
        index = faiss.IndexFlatIP(arguments.width)
        index.add(gallery)
        programs["faiss flat"] = lambda: index.search(queries, arguments.k)[1]
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    limits, grown = [], {}
    for _ in range(arguments.rounds):
        limits.append(matmul_seconds(queries, gallery))
        for name, program in programs.items():
            before, begun = peak(), time.perf_counter()
            result = program()
            seconds[name].append(time.perf_counter() - begun)
            grown[name] = max(grown.get(name, 0), peak() - before)
    if "faiss flat" in programs:
        check(queries, gallery, ranking.indices, programs["faiss flat"]())
    limit = statistics.median(limits)
    print(
        f"{arguments.queries:,} queries, {arguments.items:,} items of {arguments.width}, ", end=""
    )
    print(f"{jax.device_count()} {jax.default_backend()} device(s); R@1 {ranking.recall(1):.3f}")
    print(f"{'':18}{'seconds':>10}{'queries/s':>12}{'of matmul':>11}{'memory MB':>11}")
    rows = [{"program": "matmul alone", "seconds": limit, "memory_bytes": 0}]
    for name, found in seconds.items():
        median = statistics.median(found)
        rows.append({"program": name, "seconds": median, "memory_bytes": grown[name]})
    for row in rows:
        rate = arguments.queries / row["seconds"]
        print(
            f"{row['program']:18}{row['seconds']:10.2f}{rate:12,.0f}"
            f"{limit / row['seconds']:11.2f}{row['memory_bytes'] / 1e6:11.0f}"
        )
    if arguments.out:
        options = {k: v for k, v in vars(arguments).items() if k != "out"}
        content = {"options": options, "recall_at_1": ranking.recall(1), "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    del result


def check(queries: np.ndarray, gallery: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Where the two differ, the similarities must be equal to rounding."""
    rows, places = np.nonzero(ours != theirs)
    if not len(rows):
        return
    first, second = (
        np.einsum("pd,pd->p", queries[rows].astype(float), gallery[x[rows, places]].astype(float))
        for x in (ours, theirs)
    )
    if (worst := np.abs(first - second).max()) > 1e-6:
        sys.exit(f"rankings differ at similarities that are {worst:.1e} apart")


if __name__ == "__main__":
    main()
