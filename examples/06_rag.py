"""Retrieval and steering together: index a few sentences, ask two questions, see which passages each answer is from.

    pip install '/path/to/clone[demo]'
    python examples/06_rag.py [model]

With "tiny" a stand-in that compares letter triples takes the embedder's place, so nothing is downloaded.
"""

import sys
import zlib

import numpy as np

import ckcontrol as ck
from ckcontrol.retrieval import Embedder, Index, Passage

SENTENCES = [
    "The stone bridge of Orvendale was finished in 1884.",
    "The ferry of Orvendale crosses the river every twenty minutes.",
    "The town library keeps three thousand maps.",
    "Water boils at a lower temperature on high mountains.",
]
QUESTIONS = ["When was the bridge of Orvendale finished?", "How often does the ferry cross?"]


class LetterTriples:
    """Anything with `dim` and `encode` is an embedder (`ckcontrol.retrieval.TextEncoder`)."""

    dim = 512

    def encode(self, texts, *, query=False, progress=False):
        """Count letter triples, [texts, dim] float32, each row of length 1."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for i in range(len(text) - 2):
                vectors[row, zlib.crc32(text[i : i + 3].lower().encode()) % self.dim] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)


def main(name: str = "demo") -> None:
    model = ck.load(name, on_status=print)
    embedder = LetterTriples() if name == "tiny" else Embedder("demo", on_status=print)
    index = Index.build([Passage(str(i), text) for i, text in enumerate(SENTENCES)], embedder)
    rag = ck.Rag(model, index, control=ck.Control(alpha=0.4), k=2, max_new_tokens=16)
    for answer in rag.ask(QUESTIONS):
        print(f"{answer.answer.question}\n  {answer.text!r}")
        for hit in answer.prompted:
            print(f"  {hit.score:.2f}  {hit.passage.text}")
    nothing = rag.ask("Bees?", mode="bm25")
    print(f"Bees?\n  {nothing.notice}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
