"""What a teacher wrote, judged line by line: small pure functions that say what is wrong with it.

Checks look at letters, not at meaning. They are strict on purpose: a dropped row costs nothing,
a wrong one is learned.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from rapidfuzz import fuzz, process

from injection.grading import contains, normalise


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that carry no content; an answer of such words alone is not grounded by them.
FUNCTION_WORDS = _words(
    """a an the of in on at to for from by with as and or but nor not no is are was were be been
    being it its they them their he she his her this that these those there here which who whom
    whose what when where why how do does did has have had can could may might must shall should
    will would than then so such into over under about after before between per each every all any
    some i you we me my your our us if only also too very just"""
)
QUESTION_WORDS = _words("who whom whose what which when where why how")
# A subject made of these alone means nothing away from its text.
GENERIC_NOUNS = _words(
    """system method methods approach model process result results study paper text passage document
    section table figure author authors researchers experiment experiments data project company
    team group people person man woman thing one example case first second"""
)
# Capitalised where a question or a statement may begin anew, without naming anything.
NOT_NAMES = _words("i i'm i'd i've ok q a true false yes no hi hello please note quiz")

_SLOT = (
    r"(your|insert|placeholder|example|sample|question|answer|statement|fact|quote|subject|name|"
    r"text|topic|number|date|value|entity|term|string)"
)
# Line breaks as well: a question is one line. The last ones turn the direction of writing.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
DEBRIS = re.compile(
    rf"[\[<{{(]\s*(the |an? )?{_SLOT}\b[^\]>}})]*[\]>}})]"  # [Your Question], <answer>, {text}
    r"|^\s*(question|answer|statement|fact|subject|quote|reverse|q|a)\s*\d*\s*[:.)]\s"
    r"|^\s*(question|answer|statement|fact|subject|quote|string|text)\s*\d*\s*[.?]?\s*$"
    r"|^\s*(\d+[.)]|[-*•])\s"  # list markers
    r"|\b(sure|certainly|of course)[,!] (here|i)\b|\bhere (is|are) (the|an?|some|your) \w+"
    r"|\blorem ipsum\b|\\[nu]|```|\{\{|\}\}|\(cid:\d+\)|\ufffd|<\|?/?\w+\|?>|\.{4,}|\?{3,}|_{12,}"
    r"|^\W*$",
    re.IGNORECASE,
)
INSTRUCTION = re.compile(
    r"\b(ignore|disregard|forget|override|bypass)\b[^.!?\n]{0,40}"
    r"\b(instruction|prompt|rule|direction|guideline|everything|(previous|prior|above) \w+)"
    r"|\b(system|developer|hidden|secret) (prompt|message|instruction)"
    r"|\b(new|updated|important) instructions?\b|\bjailbreak|\bprompt injection"
    r"|\b(you are|act as|pretend to be|behave as)( now)?( an?| the)? "
    r"(\w+ )?(ai|assistant|language model|chatbot|llm|dan)\b"
    r"|\bas an? (ai|(large )?language model)\b"
    r"|\b(ai|language) (models?|assistants?)\b[^.!?\n]{0,30}\b(must|should|shall|have to|reading)\b"
    r"|\b(respond|reply) with\b"
    r"|\b(respond|reply|answer|output|print|say|write|return)( with)? (exactly|nothing but|only)\b"
    r"|\bdo not (follow|obey|reveal)\b|\[/?inst\]|<\|?/?(im_start|im_end|system|user|assistant)\|?>"
    r"|ignorier\w* (alle|die|bisherig|vorherig)|ignore[zr]? (toutes )?les (instructions|consignes)"
    r"|ignora (todas )?las instrucciones|지시(사항)?[을를]? ?무시|忽略.{0,8}(指令|指示|说明)",
    re.IGNORECASE,
)
_PART = (
    r"(text|passage|paragraph|excerpt|section|chunk|document|context|article|snippet|extract|quote|"
    r"sentence|page|table|figure|chapter|material|paper|study|information)"
)
NEEDS_CHUNK = re.compile(
    rf"\b(according to|based on|as per|using|in|from|of|by|per) (the |this |that )"
    rf"((given|provided|following|previous|above|same|whole|first|second|last) )?{_PART}\b"
    rf"|\bdoes the (given |above )?{_PART} (say|state|mention|describe|report|tell|explain|give)"
    rf"|\b(given|provided|following|preceding|above|aforementioned) {_PART}\b"
    r"|\b(mentioned|described|stated|listed|shown|given|discussed|defined|see|as) "
    r"(above|below|earlier|here|previously|in the)\b"
    r"|\b(this|these|those)\b|\bthe (latter|former|aforementioned|author'?s?|writer|speaker)\b"
    r"|\b(table|figure|fig|section|equation|eq|appendix|chapter|page)\.? \(?\d"
    r"|^(it|its|he|she|they|their|that)\b"
    r"|\blaut (dem )?text|\bim (obigen )?text|\b(selon|dans) (le|ce) (texte|passage|document)"
    r"|\b(según|en) (el|este) (texto|pasaje|documento)"
    r"|본문|지문|(위|이|다음|해당|주어진) ?(글|문서|논문|텍스트|단락|내용)|(根据|文中|上文|本文)",
    re.IGNORECASE,
)
URL = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\w+|\b[\w-]+\.(?:com|org|net|io|edu|gov)\b\S*")
SENTENCE = re.compile(r"[^.!?。\n]+(?:[.!?。](?![\s\"'”’)]|$)[^.!?。\n]*)*[.!?。]*[\"'”’)]*")
NEAR = 85  # percent of letters that two texts have in common, in order, to be near copies


class Source:
    """What a row may rest on: a chunk of the document, and the words and names of all of it."""

    def __init__(self, chunk: str, document: str):
        self.chunk = chunk
        self.numbers = numbers(chunk).keys()
        self.words = set(normalise(document).split())
        if {"the", "of", "and"} <= self.words:
            self.words |= FUNCTION_WORDS  # a short English document may lack "which" or "how"
        self.scripts = scripts(document)


def plain(text: str, limit: int = 90) -> str:
    """Text that is safe to print, on one line."""
    return " ".join(CONTROL.sub(" ", text).split())[:limit]


def sentences(text: str) -> list[str]:
    return [s.strip() for s in SENTENCE.findall(text) if s.strip()]


def content_words(text: str) -> set[str]:
    return set(normalise(text).split()) - FUNCTION_WORDS


def numbers(text: str) -> Counter:
    return Counter(w for w in normalise(text).split() if any(c.isdigit() for c in w))


def names(text: str) -> set[str]:
    """Words that name something: capitalised inside a sentence, or with an inner capital."""
    found = set()
    for match in re.finditer(r"[^\W\d_][\w’'-]*", text):
        word, before = match[0], text[: match.start()].rstrip()
        inside = bool(before) and before[-1] not in ".?!:;\"'“”‘’(-–\u2014"
        if (inside and word[0].isupper()) or any(c.isupper() for c in word[1:]):
            found |= set(normalise(re.sub(r"[’']s$", "", word)).split())
    return found - NOT_NAMES - FUNCTION_WORDS


def bare(subject: str) -> str:
    """The subject without its article, so that it is found in the middle of a sentence."""
    return re.sub(r"^(the|a|an)\s+", "", subject.strip(), flags=re.IGNORECASE)


def template_debris(text: str, source: Source) -> bool:
    """Parts of a prompt or of a form that was never filled in."""
    return bool(DEBRIS.search(text) or CONTROL.search(text))


def instruction(text: str, source: Source) -> bool:
    """A text that speaks to a language model; the document's are no facts."""
    return bool(INSTRUCTION.search(text))


def foreign_url(text: str, source: Source) -> bool:
    """A web or mail address that the chunk does not contain."""
    return any(u.rstrip(".,;:?!)") not in source.chunk for u in URL.findall(text))


def wrong_language(text: str, source: Source) -> bool:
    """Another script than the document's; or, in Latin script, hardly a word of the document's.

    Words of the same language share little words, whatever the language is.
    """
    found, allowed = scripts(text), source.scripts
    if any(n > 2 and allowed[s] < 0.02 * allowed.total() for s, n in found.items()):
        return True
    words = [w for w in normalise(text).split() if not w.isnumeric()]
    if len(words) < 5 or found["LATIN"] < 0.9 * found.total():
        return False
    return sum(w in source.words for w in words) < 0.3 * len(words)


def scripts(text: str) -> Counter:
    """How many letters of each script: LATIN, HANGUL, CJK, CYRILLIC ..."""
    return Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())


def invented(text: str, source: Source) -> bool:
    """A number that the chunk does not give, or a name that the document does not."""
    if numbers(text).keys() - source.numbers:
        return True
    return bool(names(text) - source.words)


def needs_chunk(text: str, source: Source) -> bool:
    """A text that only means something beside the passage: "according to the text", "this"."""
    return bool(NEEDS_CHUNK.search(text))


TEXT_CHECKS = {
    "template debris": template_debris,
    "instructions": instruction,
    "URL not in the chunk": foreign_url,
    "wrong language": wrong_language,
    "not grounded": invented,
    "needs the chunk": needs_chunk,
}


def wrong_text(text: str, source: Source) -> str | None:
    """The first reason not to use a line, or None."""
    return next((reason for reason, check in TEXT_CHECKS.items() if check(text, source)), None)


def grounded(answer: str, quote: str, chunk: str) -> bool:
    """The quote stands in the chunk, and every content word and number of the answer in either."""
    given = normalise(f"{quote} {chunk}").split()
    wanted = content_words(answer) | numbers(answer).keys()
    return bool(wanted) and contains(chunk, quote) and wanted <= set(given)


def vague(subject: str) -> bool:
    """A subject that names nothing by itself: "it", "the method"."""
    return not content_words(subject) - GENERIC_NOUNS or bool(NEEDS_CHUNK.search(subject))


def names_subject(text: str, subject: str) -> bool:
    """At least half of the subject's content words stand in the text."""
    wanted = content_words(subject)
    return 2 * len(wanted & set(normalise(text).split())) >= len(wanted)


def wrong_fact(fact, source: Source) -> str | None:
    """The reason not to use a drafted fact (subject, answer, quote, statement, question)."""
    if not grounded(fact.answer, fact.quote, source.chunk):
        return "not grounded"
    if vague(fact.subject):
        return "needs the chunk"
    for text in (fact.subject, fact.answer, fact.quote):
        # What is copied from the chunk may well say "this".
        reason = wrong_text(text, source)
        if reason not in (None, "needs the chunk"):
            return reason
    return wrong_statement(fact.statement, fact, source, exact=True) or wrong_question(
        fact.question, fact, source
    )


def wrong_statement(text: str, fact, source: Source, exact: bool = False) -> str | None:
    """A statement holds both ends of the fact; the canonical one in the very words."""
    if reason := wrong_text(text, source):
        return reason
    both = contains(text, bare(fact.subject)) if exact else names_subject(text, fact.subject)
    return None if both and contains(text, fact.answer) else "beside the fact"


def wrong_question(text: str, fact, source: Source) -> str | None:
    """A question names the subject and does not give the answer away."""
    if reason := wrong_text(text, source):
        return reason
    if not names_subject(text, fact.subject):
        return "needs the chunk"
    return "beside the fact" if contains(text, fact.answer) else None


def wrong_reverse(text: str, fact, source: Source) -> str | None:
    """A reverse question gives the answer and asks for the subject."""
    if reason := wrong_text(text, source):
        return reason
    right = contains(text, fact.answer) and not contains(text, bare(fact.subject))
    return None if right else "beside the fact"


class Seen:
    """Texts so far; a copy equals one of them, or nearly, and has the same content words."""

    def __init__(self, texts: Iterable[str] = ()):
        self.texts: list[str] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        self.texts.append(normalise(text))

    def has(self, text: str) -> bool:
        text = normalise(text)
        near = process.extract_iter(text, self.texts, scorer=fuzz.ratio, score_cutoff=NEAR)
        return any(score == 100 or _core(text) == _core(other) for other, score, _ in near)


def _core(text: str) -> set[str]:
    """What a text is about and asks for: content words without endings, and question words."""
    core = content_words(text) | (set(text.split()) & QUESTION_WORDS)
    return {re.sub(r"(ing|ed|es|s)$", "", word) for word in core}


def split_instructions(text: str) -> tuple[str, list[str]]:
    """(text without what speaks to a language model, the sentences left out).

    The two sentences after such a one, in the same paragraph, go with it: they say what to write.
    """
    kept, left_out = [], []
    for paragraph in text.split("\n"):
        skip, good = 0, []
        for sentence in sentences(paragraph):
            skip = 3 if INSTRUCTION.search(sentence) else skip
            (left_out if skip else good).append(sentence)
            skip = max(0, skip - 1)
        kept.append(" ".join(good) if len(good) < len(sentences(paragraph)) else paragraph)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip(), left_out
