"""Golden ids of 2,400 strings: what Hugging Face's `tokenizers` makes of them with the two fixtures' vocabularies.

    python tokenizer.py [--smollm2 M.gguf] [--out FILE] [--llamacpp]

    (default: what fixtures/fetch smollm2 prints; fixtures/tokenizer/strings.jsonl)

The tokenizers are put together here, from the GGUFs' tokens and merges and from the patterns that the published tokenizer.json
of each family has, and run on Oniguruma: neither code nor patterns are Anemone's. Control tokens are encoded twice, as what they say
and as text.

Each line of FILE is [string, a, b, c, d]: 64-bit FNV-1a digests, in hexadecimal, of the ids (each four bytes, little endian) by the
miniature with control tokens parsed (a) and as text (b), and by SmolLM2 likewise (c, d).

--llamacpp asks llama.cpp too (PyPI's `xllamacpp`) and prints every string on which the two judges differ; nothing is written
differently for it.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import urllib.request

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONTROL, USER_DEFINED = 3, 4

# Phi-4-mini's tokenizer.json (o200k).
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def miniature_words():
    return [
        pre_tokenizers.Split(Regex(O200K), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def smollm2_words():
    return [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def tokenizer(path, words):
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"].contents()]
    result = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    result.pre_tokenizer = pre_tokenizers.Sequence(words)
    result.decoder = decoders.ByteLevel()
    of_type = lambda wanted: [AddedToken(t, normalized=False) for t, ty in zip(tokens, types) if ty == wanted]
    result.add_special_tokens(of_type(CONTROL))
    result.add_tokens(of_type(USER_DEFINED))
    return result, [t for t, ty in zip(tokens, types) if ty == CONTROL]


CODE = [
    "fn main() {\n    println!(\"{}\", x);\n}\n", "def f(x):\n\treturn x**2  # square\n", "-module(hello).\n-export([main/1]).\n",
    "for (int i = 0; i < n; ++i) { a[i] <<= 2; }", "SELECT * FROM t WHERE a = 'it''s' AND b >= 1.5e-3;", "<div class=\"x\">&nbsp;</div>",
    "{\"key\": [1, 2.50, null], \"κλειδί\": \"价值\"}", "if x != y && !z || w {\r\n\t\t}\r\n", "#include <stdio.h>\n\nint\tmain(void)",
    "λ = (x) -> x + 1;", "https://example.org/a?b=c&d=%20#e", "$HOME/.cache/${name%.*}", "0x1F 0b1010 1_000_000 3.14f", "/* ... */ // ---",
    "camelCaseWord HTTPServer snake_case_word kebab-case SCREAMING_CASE", "x->y.z::w", "\\begin{align} a &= b \\\\ \\end{align}",
]
WORDS = (
    "the of and I'm you're they've she'd we'll DON'T It'S o'clock naïve café Straße ﬁne Ǆungla ǅ ʰa Ωmega привет МИР мир Ёлка שלום "
    "مرحبا नमस्ते हिन्दी ไทย 한국어 안녕하세요 日本語 カタカナ ひらがな 中文字 漢字かな交じり文 Việt İstanbul ŞIŞ ñandú œuvre Łódź a\u0301e\u0308 ﷺ ᏣᎳᎩ ⅷ Ⅻ ½ ² ٣ ५ "
    "hello world tokenizer Anemone GPU"
).split()
EMOJI = ["😀", "👩‍🚀", "👍🏽", "🇫🇷", "❤️", "🏴\U000e0067\U000e0062\U000e007f", "🧑🏻‍❤️‍💋‍🧑🏿", "✨", "☃", "𝕏", "𠜎", "\U000f1234", "🀄︎"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n ", "\u00a0", "\u3000", "\u2009", "\u200b", "\u2028", "\x0b", "\x0c", "\x85", "\r", "\ufeff"]
SIGNS = list("!?.,;:'\"()[]{}<>|/\\@#$%^&*-_=+~`") + ["...", "—", "「", "」", "。", "、", "！", "€", "№", "†", "±", "→", "''", "'S", "'ſ", "://", "/\n", "=>", "\x00", "\x1b", "\x7f"]


def strings(control):
    rng = random.Random(20240607)
    number = lambda: rng.choice(["%d", "-%d", "%d.5", "1,%03d", "%d%%", "0%d"]) % rng.randrange(10 ** rng.randrange(1, 12))
    kinds = {
        "code": lambda: rng.choice(CODE)[rng.randrange(4) :][: rng.randrange(8, 60)],
        "word": lambda: rng.choice(WORDS),
        "number": number,
        "emoji": lambda: rng.choice(EMOJI) * rng.randrange(1, 3),
        "space": lambda: "".join(rng.choices(SPACES, k=rng.randrange(1, 6))),
        "blank": lambda: " " * rng.randrange(1, 20),
        "sign": lambda: "".join(rng.choices(SIGNS, k=rng.randrange(1, 4))),
        "control": lambda: rng.choice(control),
        "broken": lambda: rng.choice(control)[: rng.randrange(1, 8)],
        "any": lambda: "".join(chr(c) for c in (rng.randrange(0x30000) for _ in range(3)) if not 0xD800 <= c < 0xE000),
    }
    yield from ["", " ", "\n", "a", "<", "<|", "\x00", " " * 300, "\n" * 40, "\t \t" * 9, "a" * 200, "9" * 50, "的" * 40, "é" * 30, "!" * 60]
    names = list(kinds)
    seen = set()
    while len(seen) < 2385:
        main = rng.choice(names)
        parts = rng.choices([main, main, "space", "word", *names], k=rng.randrange(1, 7))
        glue = rng.choice(["", "", " "])
        text = glue.join(kinds[part]() for part in parts)
        if text not in seen:
            seen.add(text)
            yield text


def digest(ids):
    value = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def llamacpp(path):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.port = str(path), 64, 1, False, 0
    server = xllamacpp.Server(params)

    def ask(text, parse):
        body = json.dumps({"content": text, "add_special": False, "parse_special": parse}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"], server

    return ask


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--smollm2")
    options.add_argument("--out", type=pathlib.Path, default=ROOT / "fixtures" / "tokenizer" / "strings.jsonl")
    options.add_argument("--llamacpp", action="store_true")
    options = options.parse_args()
    smollm2 = options.smollm2 or subprocess.check_output([sys.executable, ROOT / "fixtures" / "fetch", "smollm2"], text=True).strip()
    miniature = ROOT / "fixtures" / "miniature" / "miniature-f16.gguf"

    models_and_words = [(miniature, miniature_words()), (smollm2, smollm2_words())]
    judges = [tokenizer(path, words) for path, words in models_and_words]
    control = sorted({token for _, tokens in judges for token in tokens})
    others = [llamacpp(path) for path, _ in models_and_words] if options.llamacpp else []
    lines, differing = [], [0] * len(judges)
    for text in strings(control):
        line = [text]
        for model, (judge, _) in enumerate(judges):
            for parse in (True, False):
                judge.encode_special_tokens = not parse
                ids = judge.encode(text, add_special_tokens=False).ids
                line.append(digest(ids))
                if others and (theirs := others[model](text, parse)[0]) != ids:
                    differing[model] += 1
                    print(f"{models_and_words[model][0]} {parse=} {text!r}: {ids} by tokenizers, {theirs} by llama.cpp")
        lines.append(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{options.out}: {len(lines)} strings" + (f"; llama.cpp differs {differing} times" if others else ""))


if __name__ == "__main__":
    main()
