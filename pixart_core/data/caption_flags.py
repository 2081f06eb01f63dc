"""What can be seen to be wrong with a generated caption, without a model."""

import re
from collections import Counter

FLAGS = ("failed", "empty", "truncated", "repeated", "refusal", "too_long")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*$")
_REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|as an ai\b|"
    r"i(['’]m| am)? (cannot|can['’]?t|can not|unable to|not able to|do not see|don['’]t see)|"
    r"(there is|i see) no image)",
    re.IGNORECASE,
)
_PHRASE = 4  # words; shorter ones return in honest descriptions ("of the image")


def caption_flags(caption: str, *, cut: bool = False) -> tuple[str, ...]:
    """The flags of `caption` that its words show, in the order of `FLAGS`.

    empty: no letter or digit. truncated: does not end a sentence, or the captioner ran into its limit
    (`cut`). repeated: a phrase of 4 words comes at least three times, or up to 3 words come four times in
    a row. refusal: the model talks about itself. The other two need more than words: failed (there is no
    caption, the row tells why) and too_long (for the text encoder, see `too_long`).
    """
    text = caption.strip()
    if not re.search(r"\w", text):
        return ("empty",)
    found = {
        "truncated": cut or _SENTENCE_END.search(text) is None,
        "repeated": _repeats(re.findall(r"[\w'’-]+", text.lower())),
        "refusal": _REFUSAL.search(text) is not None,
    }
    return tuple(flag for flag in FLAGS if found.get(flag))


def _repeats(words: list[str]) -> bool:
    phrases = Counter(tuple(words[i : i + _PHRASE]) for i in range(len(words) - _PHRASE + 1))
    if phrases and max(phrases.values()) >= 3:
        return True
    for size in (1, 2, 3):
        run = 0
        for position in range(size, len(words)):
            run = run + 1 if words[position] == words[position - size] else 0
            if run >= 3 * size:
                return True
    return False
