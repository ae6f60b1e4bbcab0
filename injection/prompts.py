"""The only prompt renderer: training, evaluation and chat all go through here."""

from injection.files import InputError
from injection.profiles import Chat


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
