"""Final answers: where they stand in a text, and when two of them are equal. Nothing here raises, whatever the text."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from llmtune.rewards.format import split_thought

LONGEST_NUMBER = 100
"""Characters; longer texts are compared as text."""
LARGEST_EXPONENT = 300
"""10 ** 10 ** 9 would take the memory of the machine."""

_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_NUMBER = rf"[+-]?\$?(?:{_PLAIN})(?:e[+-]?[0-9]{{1,4}}(?![\w.]))?"
_FINDS = re.compile(rf"(?<![\w.]){_NUMBER}(?:\s*/\s*{_NUMBER})?\s*%?", re.I)
_REST_OF_NAME = re.compile(r"\w*[0-9]")
"""As in 42b7. Not part of the pattern above, which would try thousands of digits at each of their lengths."""
_ONE = re.compile(rf"({_NUMBER})(?:/({_NUMBER}))?(%?)", re.I)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_LATEX_NOISE = re.compile(
    r"\\left|\\right|\\[!,;: ]|\\displaystyle|\^\s*\{?\\circ\}?|\\(?=[$%])|[°*`]{1,3}(?=\W|$)|\*\*"
)
_PHRASE = re.compile(
    r"\b(?:answer|result)\s*(?:is|are|=|:)\s*:?|(?:答案|结果)\s*(?:应该|应)?\s*(?:是|为|[:=])\s*:?", re.I
)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|[。！？；\n]")
_CHOICE = re.compile(r"\(?([a-z])\)?(?:(?<=\))|[.:、,]|$).*")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
_CLAUSE = re.compile(r",\s|[(，（]")
_DEFINED = re.compile(r"\$?\s*[a-zA-Z]\w?\s*=\s*([^=]+)")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_PUNCTUATION = re.compile(r"(?<![0-9])[.,;:!?'\"“”‘’。、「」《》]|[.,;:!?'\"“”‘’。、「」《》](?![0-9])")


@dataclass(frozen=True)
class Answer:
    """The answer of a text.

    Attributes:
        text: As it stands there.
        kind: `marked` by a box, tags or `####`; after a `phrase` like "the answer is"; or the `whole` text.
    """

    text: str
    kind: str = "whole"


def find_answer(text: str) -> Answer:
    r"""Return the final answer of a completion or a reference; empty inside a thought that is never closed.

    In this order: the last `<answer>` tags, the last `\boxed{}` (also inside of the tags), the text after the last
    `####`, the text after the last "the answer is" or 答案是, the whole text after the thought.
    """
    _, answer = split_thought(unicodedata.normalize("NFKC", text))
    if answer is None:
        return Answer("")
    tagged = _between_tags(answer)
    inside = answer if tagged is None else tagged
    boxed = _last_boxed(inside)
    if boxed is not None:
        return Answer(boxed, "marked")
    if tagged is not None:
        return Answer(tagged, "marked")
    if "####" in answer:
        return Answer(answer.rpartition("####")[2].strip().partition("\n")[0].strip(), "marked")
    phrases = list(_PHRASE.finditer(answer))
    if phrases:
        after = answer[phrases[-1].end() :].strip()
        return Answer(_SENTENCE_END.split(after, maxsplit=1)[0].strip(), "phrase")
    return Answer(answer)


def same_answer(found: Answer, reference: str) -> bool:
    """Return whether an answer equals a reference: as a number where the reference is one, else as text.

    Of a text with further words the number is: after a phrase the first one, of a whole text the last one, between
    marks the only one; in `3 + 4 = 7` that after the `=`. A reference `x = 7` is 7.
    """
    defined = _DEFINED.fullmatch(reference)
    reference = reference if defined is None else defined[1]
    wanted = number(reference)
    if wanted is not None:
        value = number(found.text) or _number_in(found)
        return value is not None and _same_number(value, wanted)
    wanted_text = plain(reference)
    texts = [found.text]
    if found.kind == "whole":
        texts += found.text.rsplit("\n", 1)[1:]
    elif "=" not in reference:
        texts += found.text.rsplit("=", 1)[1:]
    return bool(wanted_text) and (wanted_text in map(plain, texts) or _is_choice(found.text, wanted_text))


def number(text: str) -> tuple[Fraction, bool] | None:
    r"""Return the value of a text that is one number, and whether it is a percentage; else None.

    `1,000`, `1000.0`, `$1000`, `1e3`, `1/2`, `\frac{1}{2}`, `-5`, `50%`.
    """
    if len(text) > LONGEST_NUMBER:
        return None
    clean = re.sub(r"\s*([/%$€£¥])\s*", r"\1", _without_latex(text).strip()).strip("$€£¥").rstrip(".。")
    match = _ONE.fullmatch(clean)
    if match is None:
        return None
    parts = [_fraction(part) for part in match.groups()[:2] if part]
    if None in parts or (len(parts) == 2 and not parts[1]):
        return None
    upper, lower = (*parts, Fraction(1))[:2]
    assert upper is not None
    assert lower is not None
    return upper / lower, bool(match[3])


def plain(text: str) -> str:
    """Return a text without case, LaTeX's text marks, punctuation outside of numbers and blanks beside operators."""
    text = _one_blank(_APOSTROPHE.sub("", _without_latex(text).casefold().strip().strip("$")))
    text = _one_blank(_PUNCTUATION.sub(" ", re.sub(r"(?<=[,;]) ", "", text)))
    return re.sub(r" ?([^\w\s]) ?", r"\1", text)


def _one_blank(text: str) -> str:
    """Join the words: on runs of thousands of blanks, which models write, the patterns would take minutes."""
    return " ".join(text.split())


def _is_choice(text: str, wanted: str) -> bool:
    """Return whether the reference is a letter, and the text begins with it as with a choice: `(B)`, `B. Paris`."""
    match = _CHOICE.fullmatch(_without_latex(text).casefold().strip())
    return match is not None and match[1] == wanted.strip("()")


def _same_number(one: tuple[Fraction, bool], other: tuple[Fraction, bool]) -> bool:
    """Equal, where a percent sign may be missing on one side: 50% is 50, as references often omit it, and 0.5."""
    (value, percent), (wanted, wanted_percent) = one, other
    if value == wanted:
        return True
    return percent != wanted_percent and (value / 100 if percent else value) == (
        wanted / 100 if wanted_percent else wanted
    )


def _number_in(found: Answer) -> tuple[Fraction, bool] | None:
    text = found.text
    if found.kind != "whole" and "=" in (clause := _CLAUSE.split(text, maxsplit=1)[0]):
        text = clause.rpartition("=")[2]
    text = _without_latex(text)
    numbers = [match[0] for match in _FINDS.finditer(text) if not _REST_OF_NAME.match(text, match.end())]
    if not numbers or (found.kind == "marked" and len(numbers) > 1):
        return None
    return number(numbers[-1 if found.kind == "whole" else 0])


def _fraction(text: str) -> Fraction | None:
    digits = text.replace(",", "").replace("$", "").lower()
    exponent = digits.partition("e")[2]
    if exponent and abs(int(exponent)) > LARGEST_EXPONENT:
        return None
    return Fraction(digits.replace(".e", "e").removesuffix("."))


def _without_latex(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    text = _LATEX_FRACTION.sub(lambda found: f"{found[1] or found[3]}/{found[2] or found[4]}", text)
    return _LATEX_NOISE.sub("", _LATEX_TEXT.sub(r"\1", text))


def _between_tags(text: str) -> str | None:
    """Return the text of the last `<answer>`, up to the end of the text where it is not closed."""
    if "<answer>" not in text:
        return None
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def _last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` or `\fbox{...}` whose braces close."""
    opened: list[int | None] = []  # of each open brace, where its box begins; one pass, as a model may open thousands
    found: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match[0] != "}":
            opened.append(match.end() if len(match[0]) > 1 else None)
        elif opened and (start := opened.pop()) is not None and (found is None or start > found[0]):
            found = (start, match.start())
    return None if found is None else text[slice(*found)].strip()
