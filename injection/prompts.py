"""The only prompt renderer: training, evaluation and chat all go through here.

And the only reader of think blocks, `<think>...</think>`, in what a model answers.
"""

import re

from injection.files import InputError
from injection.profiles import Chat

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
    ids = tokenizer.apply_chat_template(
        _with_system(messages, chat),
        add_generation_prompt=True,
        return_dict=False,
        **chat.template_args,
    )
    return list(ids)


def example_tokens(tokenizer, messages: list[dict], chat: Chat) -> tuple[list[int], int]:
    """(token ids, index of the first answer token) of a conversation that ends with an answer.

    The answer is appended to the very prompt that inference uses, and closed with the stop
    token, so what is trained is exactly what is generated.
    """
    prompt = prompt_tokens(tokenizer, messages[:-1], chat)
    answer = tokenizer.encode(messages[-1]["content"].strip(), add_special_tokens=False)
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
    mark = "\u241f"
    messages = _with_system([*(earlier or []), {"role": "user", "content": mark}], chat)
    text = tokenizer.apply_chat_template(messages, tokenize=False, **chat.template_args)
    return tokenizer.encode(text.split(mark)[0], add_special_tokens=False)


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
    return tokenizer.encode(text, add_special_tokens=False)[0]
