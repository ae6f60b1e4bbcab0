"""The only prompt renderer: training, evaluation and chat all go through here.

Only the chat template writes special tokens. Where a message contains the text of one, say
`<|im_end|>`, it is encoded as the ordinary characters it is typed with, so nobody can end a turn or
begin another from inside a message. Every other text gets the ids it always had.

And the only reader of think blocks, `<think>...</think>`, in what a model answers.
"""

import functools
import re

from injection.files import InputError
from injection.profiles import Chat

# A noncharacter of Unicode: no text has it, no template looks for it.
CUT = "\ufdd0"
THINK, END = "<think>", "</think>"
# Some templates open the block in the prompt: then the answer begins inside of it.
_BLOCK = re.compile(f"{THINK}(.*?)(?:{END}|\\Z)", re.DOTALL)


def _with_system(messages: list[dict], chat: Chat) -> list[dict]:
    if chat.system_prompt is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": chat.system_prompt}, *messages]


def prompt_tokens(tokenizer, messages: list[dict], chat: Chat) -> list[int]:
    """Token ids of a conversation that ends with a user turn, up to where the answer begins.

    messages: [{"role": "user"|"assistant"|"system", "content": str}, ...]
    """
    return _encode(tokenizer, _render(tokenizer, messages, chat, add_generation_prompt=True))


def text_tokens(tokenizer, text: str) -> list[int]:
    """Token ids of a text; what looks like a special token is taken as the characters it is."""
    return _encode(tokenizer, _cut(tokenizer, text))


def _render(tokenizer, messages: list[dict], chat: Chat, **options) -> str:
    """The template's text, special tokens inside the messages cut in two."""
    cut = [{**m, "content": _cut(tokenizer, m["content"])} for m in _with_system(messages, chat)]
    return tokenizer.apply_chat_template(cut, tokenize=False, **options, **chat.template_args)


def _cut(tokenizer, text: str) -> str:
    """Mark a cut behind the first character of every special token, so that no piece holds one."""
    names, first_characters = _special(tokenizer)
    if first_characters.isdisjoint(text):
        return text
    for name in names:
        while name in text:
            text = text.replace(name, name[0] + CUT + name[1:])
    return text


@functools.lru_cache(maxsize=2)
def _special(tokenizer) -> tuple[list[str], set[str]]:
    """(special tokens, their first characters) that the tokenizer finds anywhere in a text."""
    added = tokenizer.added_tokens_decoder.values()
    names = [t.content for t in added if t.special and len(t.content) > 1]
    return names, {name[0] for name in names}


def _encode(tokenizer, text: str) -> list[int]:
    pieces = text.split(CUT)
    return [i for p in pieces for i in tokenizer.encode(p, add_special_tokens=False)]


def example_tokens(tokenizer, messages: list[dict], chat: Chat) -> tuple[list[int], int]:
    """(token ids, index of the first answer token) of a conversation that ends with an answer.

    The answer is appended to the very prompt that inference uses, and closed with the stop
    token, so what is trained is exactly what is generated.
    """
    prompt = prompt_tokens(tokenizer, messages[:-1], chat)
    answer = text_tokens(tokenizer, messages[-1]["content"].strip())
    return prompt + answer + [stop_ids(tokenizer, chat)[0]], len(prompt)


def stop_ids(tokenizer, chat: Chat) -> list[int]:
    """Ids of the profile's stop tokens, the first being the one that closes an answer."""
    ids = tokenizer.convert_tokens_to_ids(chat.stop_tokens)
    unknown = tokenizer.unk_token_id
    for name, number in zip(chat.stop_tokens, ids, strict=True):
        if number is None or (number == unknown and name != tokenizer.unk_token):
            raise InputError(f"stop token {name} of the profile is not in the tokenizer")
    return ids


def user_header(tokenizer, chat: Chat, earlier: list[dict] | None = None) -> list[int]:
    """Token ids of everything that stands before the first word of the user's next message."""
    mark = "\ufdd1"
    messages = [*(earlier or []), {"role": "user", "content": mark}]
    text = _render(tokenizer, messages, chat)
    return _encode(tokenizer, text.rpartition(mark)[0])


def open_block(tokenizer, prompt: list[int]) -> str:
    """The think block that the prompt leaves open, `<think>` and what follows, or nothing."""
    end = tokenizer.decode(prompt[-16:])
    at = end.rfind(THINK)
    return end[at:] if at > end.rfind(END) else ""


def pieces(answer: str) -> list[tuple[str, str]]:
    """("think" or "text", content) pieces of an answer, in order; a block may lack either mark."""
    start, end = answer.find(THINK), answer.find(END)
    if end >= 0 and not 0 <= start < end:
        answer = THINK + answer
    parts = _BLOCK.split(answer)
    return [("think" if i % 2 else "text", part) for i, part in enumerate(parts) if part.strip()]


def without_thoughts(answer: str) -> str:
    """What was said outside of think blocks."""
    return "".join(content for kind, content in pieces(answer) if kind == "text").strip()


def first_token(tokenizer, text: str) -> int:
    """Id of the token that an answer with this text begins with."""
    return text_tokens(tokenizer, text)[0]
