"""Files such as people and broken disks make them: by kind and seed."""

import io
import random

import numpy as np

WORDS = [
    "",
    " ",
    "NA",
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "1e400",
    "1e300",
    "-1e-320",
    "0x1f",
    "1_000",
    "1,5",
    "١٢",
    "true",
]
WORDS += [
    "é",
    "日本",
    "\u202e",
    "'",
    "a\tb",
    "=1+1",
    "2013-01-01",
    "9" * 400,
    "<b>",
    "\\",
    "None",
    "--",
    "1.2.3",
    "∞",
    "½",
]


def numbers(rng, n, d=2):
    return [[f"{rng.gauss(0, 1):.3f}" for _ in range(d)] for _ in range(n)]


def text(header, rows, separator=",", end="\n"):
    return end.join([separator.join(header), *(separator.join(row) for row in rows), ""])


def neat(rng):
    return text(["a", "b"], numbers(rng, rng.randint(1, 30)))


def spoil(rng, rows):
    for _ in range(rng.randint(1, 12)):
        rows[rng.randrange(len(rows))][rng.randrange(2)] = rng.choice(WORDS)
    return rows


def truncated(rng):
    content = neat(rng).encode()
    return content[: rng.randrange(len(content))]


def words(rng):
    return text(["a", "b"], spoil(rng, numbers(rng, 15))).encode()


def only_words(rng):
    return text(["a", "b"], [[rng.choice(WORDS), rng.choice(WORDS)] for _ in range(8)]).encode()


def ragged(rng):
    rows = [row[: rng.randint(0, 2)] + ["7"] * rng.choice([0, 0, 0, 1, 5]) for row in numbers(rng, 15)]
    return text(["a", "b"], rows).encode()


def separators(rng):
    rows = [rng.choice(",;\t| ").join(row) for row in numbers(rng, 15)]
    return ("a" + rng.choice(",;\t| ") + "b\n" + "\n".join(rows)).encode()


def headers(rng):
    choices = (
        ["a", "a"],
        ["", "b"],
        ["1.5", "2"],
        ["0", "1"],
        ['"a', "b"],
        ["a"],
        [],
        ["a", "b", "b"],
        ["é", "日本"],
        [" a", "b "],
    )
    return text(rng.choice(choices), numbers(rng, 6)).encode()


def line_ends(rng):
    content = text(["a", "b"], numbers(rng, 8), end=rng.choice(["\r\n", "\r", "\n\n", "\r\r\n", "\n\r"]))
    return rng.choice([b"", b"\xef\xbb\xbf", b"\n\n"]) + content.encode()


def encodings(rng):
    content = text(["a", "b", "é"], [[*row, "ü日"] for row in numbers(rng, 8)])
    return content.encode(rng.choice(["utf-16", "utf-16-le", "utf-8-sig", "utf-8", "utf-32", "gb18030"]))


def quotes(rng):
    content = neat(rng)
    at = rng.randrange(len(content))
    return (content[:at] + rng.choice(['"', '""', '"\n', "'", '","', '\\"']) + content[at:]).encode()


def noise(rng):
    return rng.choice([b"", b"PAR1", b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b", b"a,b\n"]) + rng.randbytes(
        rng.randint(0, 400)
    )


def flipped(rng):
    content = bytearray(neat(rng).encode())
    for _ in range(rng.randint(1, 5)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def nothing(rng):
    return rng.choice(
        [b"", b"\n", b"  \n \n", b"\xef\xbb\xbf", b"a,b", b"a,b\n", b",\n,\n", b"\0", b'"', b"#\n", b"a\n\n\n"]
    )


def huge(rng):
    rows = [[f"{rng.choice([1, -1]) * 10.0 ** rng.randint(-300, 300):.3g}" for _ in range(2)] for _ in range(8)]
    return text(["a", "b"], rows).encode()


def wide(rng, d):
    return text([f"c{i}" for i in range(d)], numbers(rng, 3, d)).encode()


def arrays(rng):
    """npy, npz and Parquet of all types, whole and damaged."""
    random_ = np.random.default_rng(rng.randrange(1 << 30))
    made = [
        random_.normal(size=(8, 2)), random_.normal(size=8), np.float32(3), np.zeros((0, 2)), np.zeros((2, 3, 4)),
        np.array(["x", "y"]), np.array([b"1", b"2"]), np.ones((6, 2), ">f8"), np.ones((6, 2), complex),
        np.full((5, 2), np.nan), np.arange(6).astype("M8[D]"), np.array([(1.0, 2)], [("a", float), ("b", int)]),
        np.ones((6, 2), np.float16), np.ones((6, 2), bool), np.full((5, 2), np.inf), np.ones((4, 2), "u8") * (2**63),
    ]  # fmt: skip
    buffer = io.BytesIO()
    array = made[rng.randrange(len(made))]
    if rng.random() < 0.5:
        np.save(buffer, array)
    else:
        np.savez(buffer, a=array, b=made[rng.randrange(len(made))])
    return damaged(rng, buffer.getvalue())


def parquet(rng):
    import polars as pl

    columns = [
        [1.0, 2.0, None], ["1", "x", None], [True, False, None], [[1.0], [2.0], [3.0]], [{"p": 1}, {"p": 2}, {"p": 3}],
        [b"a", b"b", b"c"], [float("nan"), float("inf"), 1.0], [None, None, None], [10**18, 2, 3],
    ]  # fmt: skip
    buffer = io.BytesIO()
    pl.DataFrame({"a": rng.choice(columns), "b": rng.choice(columns)}).write_parquet(buffer)
    return damaged(rng, buffer.getvalue())


def damaged(rng, content):
    how = rng.randrange(4)
    if how == 0:
        return content[: rng.randrange(len(content))]
    if how == 1:
        content = bytearray(content)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


TEXTS = (
    truncated,
    words,
    only_words,
    ragged,
    separators,
    headers,
    line_ends,
    encodings,
    quotes,
    noise,
    flipped,
    nothing,
    huge,
)


def make(seed):
    """A file's suffix and content."""
    rng = random.Random(seed)
    kind = rng.randrange(len(TEXTS) + 3)
    if kind < len(TEXTS):
        return rng.choice([".csv", ".csv", ".csv", ".txt", ".tsv"]), TEXTS[kind](rng)
    if kind == len(TEXTS):
        content = parquet(rng)
        return rng.choice([".parquet", ".parquet", ".parquet", ".csv"]), content
    content = arrays(rng)
    suffix = ".npz" if content[:2] == b"PK" else ".npy"
    return rng.choice([suffix, suffix, suffix, ".npy", ".npz", ".csv"]), content
