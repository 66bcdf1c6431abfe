"""A small CLIP tokenizer made on the spot, for checkpoints that are made here instead of downloaded."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers

_BOS = "<|startoftext|>"
_EOS = "<|endoftext|>"
_WORD_END = "</w>"

# Each becomes one token; every other word is spelled in pieces of these and in bytes. Lower-case ASCII only: the
# tokenizer lower-cases text, and ASCII bytes are their own symbols.
_WORDS = """
    a an and are at behind below beside between by for from in is near next of on one over the to two under with without
    circle cross cube disc diamond heart hexagon oval pentagon pyramid rectangle ring shape sphere square star triangle
    circles crosses diamonds hearts rings shapes squares stars triangles three against
    black blue brown cyan gray green magenta orange pink purple red white yellow bright color dark light pale
    big huge large left little middle right small tiny top bottom center background corner
    cat dog bird fish horse flower tree house car boat ball sun moon sky sea mountain forest river field city
    balloon hill hills meadow mountains sail sailing day night sunny sunset
    person man woman child face hand eye hair girl boy
    abstract art beautiful clean detailed digital drawing illustration oil painting paper photo picture portrait
    quality realistic sharp simple sketch smooth style texture watercolor
    bad blurry cropped deformed disfigured extra grainy jpeg low missing noise poorly text ugly watermark worst
    drawn limb limbs finger fingers anatomy mutated mutation artifact artifacts signature
"""


def write_tokenizer(out: Path, *, max_length: int = 77) -> None:
    """Write a tokenizer that ``transformers.CLIPTokenizer.from_pretrained(out)`` loads; the folder is made if missing.

    Byte-level BPE, so that any text has tokens and none is unknown. Laid out as Stable Diffusion 1.x's, whose ids also
    end with BOS and EOS (CLIP's text model may look for EOS as the highest id) and whose padding is EOS. The files are
    the same every time.
    """
    byte_symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(_WORDS.split())
    merged = dict.fromkeys(left + right for left, right in merges)
    symbols = [*byte_symbols, *(byte + _WORD_END for byte in byte_symbols), *merged, _BOS, _EOS]
    special = {"bos_token": _BOS, "eos_token": _EOS, "unk_token": _EOS, "pad_token": _EOS}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, **special}

    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "vocab.json", {symbol: index for index, symbol in enumerate(symbols)})
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(out / "special_tokens_map.json", special)
    _write_json(out / "tokenizer_config.json", config)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Learn byte-pair merges, the commonest pair first, until each word is one symbol (Sennrich et al., 2016).

    Written out because the trainer of ``tokenizers`` breaks ties in another order each time it runs.
    """
    spellings = [[*word[:-1], word[-1] + _WORD_END] for word in words]
    merges = []
    while pairs := Counter(pair for spelling in spellings for pair in pairwise(spelling)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spellings = [_merge(spelling, best) for spelling in spellings]
    return merges


def _merge(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in spelling:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
