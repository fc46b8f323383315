"""An index on disk: files in, found by meaning, words and metadata, changed, checked, opened again.

    pip install '/path/to/clone[demo]'
    python examples/08_index.py [model]

With "tiny" a stand-in that compares letters takes the embedder's place, so nothing is downloaded.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import ckcontrol as ck
from ckcontrol.retrieval import Embedder, Index, read

ROWS = [
    {"id": "toll", "text": "The bridge toll was two pence for a cart.", "year": 1884},
    {"id": "salt", "text": "Salt came up the river by barge.", "year": 1790},
    {"id": "fair", "text": "The spring fair moved to the meadow behind the mill.", "year": 1921},
]


class Letters:
    """To cut documents an embedder also has a tokenizer, and a window: the tokens it can read at once."""

    name, dim, window = "letters", 256, 64

    def __init__(self):
        self.tokenizer = ck.load("tiny")[1]

    def encode(self, texts, *, query=False, progress=False):
        """Count letters, [texts, dim] float32."""
        return np.array([np.bincount(list(text.lower().encode()), minlength=256) for text in texts], dtype=np.float32)


def main(name: str = "demo") -> None:
    embedder = Letters() if name == "tiny" else Embedder("demo", on_status=print)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes")
        notes.mkdir()
        (notes / "mill.md").write_text("# The mill\n\nThe mill has stood still since the flood.\n")
        (notes / "trade.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        with Index.build(read(notes), embedder, Path(folder, "idx")) as index:
            for how in ({"mode": "dense"}, {"mode": "bm25"}, {"mode": "hybrid", "where": {"year": {"$gte": 1800}}}):
                hits = index.search("salt on the river", k=2, **how)
                print(how, [hit.passage.metadata["document"].split("/")[-1] for hit in hits])
            (notes / "mill.md").write_text("# The mill\n\nThe mill grinds again.\n")
            print(index.add(read(notes)), index.remove(where={"year": {"$lt": 1800}}), sep="\n")
        with Index.open(Path(folder, "idx"), embedder) as index:  # every sha256 is compared before a file is read
            print([hit.passage.text.split("\n")[-1] for hit in index.search("mill", k=1, mode="bm25")])
        print("sound:", all(finding.ok for finding in Index.verify(Path(folder, "idx"))))


if __name__ == "__main__":
    main(*sys.argv[1:2])
