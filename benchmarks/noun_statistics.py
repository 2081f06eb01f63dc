"""Speed and memory of `pixart caption --stats`: the tagger alone, and the whole command.

    OMP_NUM_THREADS=1 python benchmarks/noun_statistics.py --json benchmarks/results/noun_statistics.json

Captions are generated: 110 words in sentences of 11, words of TextBlob's lexicon by Zipf's law, every
twentieth word made up (unknown words take longer and are distinct nouns, the worst case for memory).
With --data also captions of your own, and with --tokenizer their tokens. About six minutes of processor time.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import describe_machine, write_result
from process_memory import run_watched

from pixart_core.data.caption_sources import has_text, open_captions
from pixart_core.data.nouns import CaptionCounts
from pixart_core.data.taggers import load_tagger
from pixart_core.data.token_lengths import TokenLengths, load_token_lengths

WORDS, SENTENCE, UNKNOWN = 110, 11, 20
REPEATS = 5
STATS = ("-c", "from pixart_cli.app import main; main()", "caption", "--stats", "--json")


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="captions of your own, as for pixart caption --stats")
    parser.add_argument("--tokenizer", help="folder or hub id; default: tokens are not counted")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000], help="whole command")
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2], help="whole command")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    machine = describe_machine()
    tokens = load_token_lengths(arguments.tokenizer) if arguments.tokenizer else None
    samples = {"generated, 110 words": list(generate(4000))}
    if arguments.data:
        samples[arguments.data] = [row.text for row in open_captions(arguments.data).read() if has_text(row)]
    results: dict[str, Any] = {"tagger": load_tagger().name, "one core": {}, "whole command": []}
    for name, texts in samples.items():
        results["one core"][Path(name).name] = show(one_core(texts, tokens))
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            file = Path(folder) / f"{size}.txt"
            with file.open("w") as lines:
                lines.writelines(f"{text}\n" for text in generate(size))
            for processes in arguments.num_proc:
                results["whole command"].append(show(whole(file, size, processes)))
    if arguments.json:
        write_result(arguments.json, "benchmarks/noun_statistics.py", results, machine)


def generate(number: int) -> Iterator[str]:
    """Captions, the same each time."""
    from textblob.en import lexicon

    rng = random.Random(0)
    words = sorted(word for word in lexicon if word.isalpha() and word.islower())
    rng.shuffle(words)
    cumulative = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for _ in range(number):
        chosen = rng.choices(words, cum_weights=cumulative, k=WORDS)
        for place in range(rng.randrange(UNKNOWN), WORDS, UNKNOWN):
            chosen[place] = "".join(rng.choices("bcdfgaeiou", k=6))
        sentences = (chosen[start : start + SENTENCE] for start in range(0, WORDS, SENTENCE))
        yield " ".join(" ".join(sentence).capitalize() + "." for sentence in sentences)


def one_core(texts: list[str], tokens: TokenLengths | None) -> dict[str, Any]:
    """Processor time of tagging and of tokenizing, each alone and with the counting around it."""
    tagger = load_tagger()
    from textblob.en.taggers import PatternTagger

    tag = PatternTagger().tag
    tagged = sum(len(tag(text)) for text in texts)  # and the lexicon is read
    found: dict[str, Any] = {
        "captions": len(texts),
        "tokens a caption, of the tagger": round(tagged / len(texts), 1),
    }
    seconds = timed(lambda: [tag(text) for text in texts])
    found["tagger alone, tokens/s"] = round(tagged / seconds)
    seconds = timed(lambda: CaptionCounts.of(texts, tagger, None))
    found["counting nouns, tokens/s"] = round(tagged / seconds)
    found["counting nouns, captions/s"] = round(len(texts) / seconds)
    if tokens is not None:
        seconds = timed(lambda: tokens.of(texts))
        found["tokenizer"] = tokens.name
        found["counting tokens, captions/s"] = round(len(texts) / seconds)
    return found


def timed(work: Callable[[], Any]) -> float:
    """Median seconds of processor time of this process, all its threads."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def whole(file: Path, size: int, processes: int) -> dict[str, Any]:
    """`pixart caption --stats` on a text file, start of Python included."""
    usage = run_watched(
        [sys.executable, *STATS, "--data", str(file), "tokenizer=null", f"num_proc={processes}"]
    )
    counts = json.loads(usage.output)["captions"]
    assert counts["captions"] == size
    return {
        "captions": size,
        "processes": processes,
        "distinct nouns": counts["distinct_nouns"],
        "seconds": round(usage.seconds, 1),
        "cpu seconds": round(usage.cpu_seconds, 1),
        "captions a cpu second": round(size / usage.cpu_seconds),
        "peak MiB of the first process": round(usage.peak_anonymous / 2**20),
        "megabytes of captions": round(file.stat().st_size / 1e6),
    }


def show(found: dict[str, Any]) -> dict[str, Any]:
    """Print and pass on."""
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
