"""A transformer set by hand whose memory head and context head are known, its tokenizer and its facts.

GPT-2 with two layers of three heads. The residual stream has named features, each stored as +f and -f so that
LayerNorm's mean is zero. Written by construction:

    head 0.2   memory: attends to subjects, writes which subject it is; layer 1's MLP turns that into the answer it
               remembers. Its direct path to the logits is nothing: only path patching with live MLPs can find it.
    head 1.1   context: attends to answers in the prompt and writes them to the output.
    head 1.0   the same at a quarter of the strength and negative: it speaks against the context.
    the rest   attend to everything and write to features nobody reads.

Memory is strong for "famous" subjects (it beats the context) and weak for the others (the context beats it), so pruning
either head flips the answers of its half.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ckcontrol.heads.finding.facts import Fact

SUBJECTS = ["Arle", "Bont", "Cade", "Dorn", "Elba", "Fynn", "Gaul", "Hest", "Ilta", "Jorn", "Kerr", "Lund"]
ANSWERS = ["ash", "bay", "cob", "dew", "elm", "fig", "gum", "hay", "ivy", "jet", "kip", "lot"]
WORDS = ["<unk>", "<pad>", "<end>", "the", "tree", "of", "is", "."]
FAMOUS = set(SUBJECTS[::2])
HEADS, WIDTH = 3, 40  # heads a layer, head_dim
MEMORY, CONTEXT, AGAINST = (0, 2), (1, 1), (1, 0)
STRONG, WEAK, COPY = 9.0, 1.0, 1.5


class Known(NamedTuple):
    model: Any
    tokenizer: Any
    facts: list[Fact]


def known_model() -> Known:
    """Build it; deterministic but for the junk heads' fixed random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = WORDS + SUBJECTS + ANSWERS
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    n, size = len(SUBJECTS), HEADS * WIDTH
    config = GPT2Config(
        vocab_size=len(words),
        n_embd=size,
        n_layer=2,
        n_head=HEADS,
        n_inner=n,
        n_positions=64,
        tie_word_embeddings=False,
        bos_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
    )
    generator = torch.Generator().manual_seed(0)
    model = GPT2LMHeadModel(config).float().eval()
    half = size // 2
    subject, answer = 0, n  # where features start: identities, two flags, recalled subject, output, junk
    is_subject, is_answer, recalled, output, junk = 2 * n, 2 * n + 1, 2 * n + 2, 3 * n + 2, 4 * n + 2

    def write(column: torch.Tensor, feature: int, value: float) -> None:
        column[feature], column[feature + half] = value, -value

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (model.transformer.ln_f, *(n for b in model.transformer.h for n in (b.ln_1, b.ln_2))):
            norm.weight.fill_(1)
        embed = model.transformer.wte.weight
        for i in range(n):
            write(embed[len(WORDS) + i], subject + i, 1.0)
            write(embed[len(WORDS) + i], is_subject, 1.0)
            write(embed[len(WORDS) + n + i], answer + i, 1.0)
            write(embed[len(WORDS) + n + i], is_answer, 1.0)
            write(model.lm_head.weight[len(WORDS) + n + i], output + i, 1.0)
        for word in range(3, len(WORDS)):
            write(embed[word], junk + word, 1.4)

        def attend(head: tuple[int, int], flag: int | None, first: int, to: int, value: float) -> None:
            attention = model.transformer.h[head[0]].attn
            start = head[1] * WIDTH
            attention.c_attn.bias[start] = 10.0  # every query asks the same
            if flag is not None:
                write(attention.c_attn.weight[:, size + start], flag, 1.0)
            for i in range(n):
                write(attention.c_attn.weight[:, 2 * size + start + i], first + i, 0.1)
                write(attention.c_proj.weight[start + i], to + i, value)

        attend(MEMORY, is_subject, subject, recalled, 1.0)
        attend(CONTEXT, is_answer, answer, output, COPY)
        attend(AGAINST, is_answer, answer, output, -COPY / 4)
        for layer, head in ((0, 0), (0, 1), (1, 2)):
            attention = model.transformer.h[layer].attn
            block = slice(head * WIDTH, (head + 1) * WIDTH)
            values = slice(2 * size + head * WIDTH, 2 * size + (head + 1) * WIDTH)
            attention.c_attn.weight[:, values] = 0.1 * torch.randn(size, WIDTH, generator=generator)
            attention.c_proj.weight[block, junk : junk + 6] = 0.1 * torch.randn(WIDTH, 6, generator=generator)
        mlp = model.transformer.h[1].mlp
        for i, name in enumerate(SUBJECTS):
            write(mlp.c_fc.weight[:, i], recalled + i, 1.0)
            mlp.c_fc.bias[i] = -2.0  # half a subject is none
            write(mlp.c_proj.weight[i], output + i, (STRONG if name in FAMOUS else WEAK) / 10)
    facts = [
        Fact("tree", s, a, f"the tree of {s} is", context_template="the tree of {subject} is {answer} .")
        for s, a in zip(SUBJECTS, ANSWERS, strict=True)
    ]
    return Known(model, tokenizer, facts)
