"""A small CLIP tokenizer, trained on the captions of the bundled model."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def merges(captions: list[str], size: int) -> list[tuple[str, str]]:
    """Byte-pair merges learnt from `captions`, at most as many as a vocabulary of `size` holds."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        initial_alphabet=alphabet,
        # Named beforehand, or they are numbered in the order of a hash table, and pairs that occur
        # equally often are then merged in another order in every run.
        special_tokens=[symbol + "</w>" for symbol in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def train(captions: list[str], size: int, tokens: int, folder: Path) -> CLIPTokenizer:
    """Train on `captions` and write `folder` in the stock layout; prompts hold `tokens` tokens.

    Ids follow CLIP: the bytes, the bytes that end a word, the merges, then start and end of text last
    (text pooling looks for the largest id). Every byte has an id, so no word is unknown.
    """
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = merges(captions, size)
    entries = [*symbols, *(s + "</w>" for s in symbols), *("".join(p) for p in pairs), START, END]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=pairs, unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=tokens,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    # transformers 5 writes tokenizer.json alone; older readers want these two.
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer
