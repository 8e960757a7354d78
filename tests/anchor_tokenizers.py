"""Tiny tokenizers of the usual families, trained on a few lines, and random texts that are hard for them."""

from functools import cache

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

FRAGMENTS = [
    "The capital of France is Paris. ",
    "Its neighbour is Spain, and 1,234 people don't mind it! ",
    "snake_case = call(x,  y)\n    return [1, 2]\n\n",
    "a  b   c    d\t\te \t f ",
    "line one\r\nline two\r\n\r\n",
    "naïve café Ångström ",
    "cafe\u0301 a\u0308\u0304 o\u0323\u0302n ",
    "日本語のテキスト。中文，混合 words ",
    "ｶﾞｷﾞ ハ\u3099ハ 각\u1100\u1161\u11a8 ",
    "العربية مع شَكْل and שָׁלוֹם ",
    "हिन्दी में लिखा ",
    "ﬁne ﬂow ① ½ Ⅷ … ﷺ ² ´ ¨ ",
    "İstanbul ẞ ΣΟΦΟΣ ",
    "🙂 👩‍👩‍👧‍👦 🇫🇷🇪🇸 👍🏽 ❤\ufe0f 1\ufe0f\u20e3 ",
    "zero\u200bwidth\u200djoin\u00a0space\u3000wide ",
    "▁ and Ġ and ## and <s> ",
]
LINES = [*FRAGMENTS, *("the cat sat on the mat and read of the capital " + f for f in FRAGMENTS)] * 3
BYTE_LEVEL = ("bytes", "gpt2", "llama3", "trimmed", "superwords")
KINDS = (*BYTE_LEVEL, "metaspace", "unigram", "wordpiece", "fallback", "collapsed")


def random_text(rng: np.random.Generator, n_fragments: int = 8) -> str:
    """Whole fragments, cut ones and shuffled ones, one after the other."""
    parts = []
    for fragment in rng.choice(FRAGMENTS, n_fragments):
        start, stop = sorted(rng.integers(0, len(fragment) + 1, 2))
        letters = list(fragment)
        rng.shuffle(letters)
        parts.append([str(fragment), fragment[start:stop], "".join(letters)][rng.choice(3, p=[0.6, 0.2, 0.2])])
    return "".join(parts)


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a kind; all are trained on the same lines."""
    if kind in BYTE_LEVEL:
        return _byte_level(kind)
    if kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            show_progress=False, vocab_size=400, special_tokens=["[UNK]"], unk_token="[UNK]"
        )
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            show_progress=False, vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]"]
        )
    else:
        made = Tokenizer(models.BPE(byte_fallback=kind == "fallback", unk_token="[UNK]"))
        special = ["[UNK]"] + [f"<0x{i:02X}>" for i in range(256)] * (kind == "fallback")
        trainer = trainers.BpeTrainer(show_progress=False, vocab_size=600, special_tokens=special)
        if kind == "fallback":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            collapse = [normalizers.Replace(Regex(" {2,}"), " ")] * (kind == "collapsed")
            made.normalizer = normalizers.Sequence([normalizers.NFKC(), *collapse])
            made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(LINES, trainer)
    if kind == "wordpiece":
        pair = [("[CLS]", 1), ("[SEP]", 2)]
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
        return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def _byte_level(kind: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "superwords")
    made.decoder = decoders.ByteLevel()
    special = ["<s>"] if kind == "llama3" else []
    size = {"bytes": 256, "gpt2": 400, "llama3": 600}.get(kind, 500)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        show_progress=False, vocab_size=size, special_tokens=special, initial_alphabet=alphabet
    )
    made.train_from_iterator(LINES, trainer)
    if kind in ("trimmed", "superwords"):
        made.post_processor = processors.ByteLevel(trim_offsets=True)
    if kind == "llama3":
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")
    return PreTrainedTokenizerFast(tokenizer_object=made)
