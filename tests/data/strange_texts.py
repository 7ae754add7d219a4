"""Texts to compare tokenizers on: all scripts, HTML, emoji, control characters, long, empty."""

import random

BLOCKS = (
    (0x00, 0x20), (0x20, 0x7F), (0x7F, 0x100), (0x100, 0x250), (0x250, 0x370), (0x370, 0x530),
    (0x590, 0x780), (0x900, 0xE00), (0x1E00, 0x2000), (0x2000, 0x2070), (0x20A0, 0x2C00),
    (0x3000, 0x3400), (0x4E00, 0x9FFF), (0xAC00, 0xD7A0), (0xFB00, 0xFFFE), (0x10000, 0x10500),
    (0x1F300, 0x1FA00), (0xE0000, 0xE0100),
)  # fmt: skip
PARTS = (
    "a photo of a cat", "The DOG's", "isn't", "I'd", "we'll", "'S", "'LL", "'\u017f", "!", "!!",
    "!(", "?!", "(!)", "a!b", "3.14159", "1,000", "50%", "&amp;", "&lt;", "&#39;", "&#x41;",
    "&nbsp;", "&amp;lt;b&amp;gt;", "<b>bold</b>", "&eacute;", "&notanentity;", "#tag", "@user",
    "snake_case", "__init__", "https://x.y/z?a=b&c=d", "\u03a3\u03b1\u03c2", "\u0130stanbul",
    "\u00df", "\u1e9e", "\ufb01ne", "\u2460", "\u00bd", "\u2167", "e\u0301", "caf\u00e9",
    "caf\u00c3\u00a9", "\u00e2\u20ac\u0153hi\u00e2\u20ac\u009d", "\u201cquoted\u201d", "\u2019s",
    "\uff21\uff22\uff23", "\u65e5\u672c\u8a9e", "\ud55c\uad6d\uc5b4", "\u4f60\u597d\uff0c",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u05e2\u05d1\u05e8\u05d9\u05ea", "\u0e20\u0e32\u0e29\u0e32", "\U0001f431",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f",
    "\x00", "\x07", "\x1b[31mred", "\x85", "\u200b", "\ufeff", "\u202e", "\r\n", "\t", "\u00a0",
    "\u2003", "<|x|>", "\u0345", "x" * 90,
)  # fmt: skip


def make(count, seed=0):
    """``count`` texts; the first are "", a blank and very long ones."""
    rng = random.Random(seed)
    texts = ["", " ", "\n", "cat " * 5000, "x" * 3000, "\U0001f431" * 2000, "!" * 500]
    while len(texts) < count:
        texts.append(_of_blocks(rng) if rng.random() < 0.5 else _of_parts(rng))
    return texts[:count]


def _of_blocks(rng):
    block, text = rng.choice(BLOCKS), ""
    for _ in range(rng.randint(1, 30)):
        if rng.random() < 0.2:
            block = rng.choice(BLOCKS)
        text += (" " if rng.random() < 0.15 else "") + chr(rng.randrange(*block))
    return text


def _of_parts(rng):
    between = rng.choice(("", " "))
    return between.join(rng.choice(PARTS) for _ in range(rng.randint(1, 10)))
