"""The tokenizer files of a model folder: whoever loads them gets the ids of tokenizer.json.

transformers 5 builds a tokenizer anew when `tokenizer_class` names a model's own class, such as
HyperCLOVA X's GPT2Tokenizer: the pre-tokenizer of tokenizer.json is replaced, text gets other ids,
and no error says so. `PreTrainedTokenizerFast` takes tokenizer.json as it is.
"""

from pathlib import Path

from injection.files import InputError, read_json, read_text, require, shown, write_json
from injection.profiles import Chat

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SAMPLES = (
    "The quick brown fox, isn't it? They've",
    "In 2024 it cost 1,234.50.",
    "def f(x):\n    return x**2\n",
    "(foo).\n\n(bar)",
    "한국어 문장 12개를 읽고, 답하세요.",
    "a  b\t\n\n",
)


def keep_token_ids(folder: Path) -> None:
    """Name a tokenizer class that leaves tokenizer.json alone, and no code of the repository's."""
    file = folder / "tokenizer_config.json"
    config = read_json(file) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("auto_map", None)
    write_json(file, config)


def stop_ids(folder: Path, chat: Chat) -> list[int]:
    """Ids of the profile's stop tokens, from tokenizer.json alone."""
    from tokenizers import Tokenizer

    file = require(folder / "tokenizer.json", "run the download step of 03_quantization again")
    tokenizer = Tokenizer.from_file(str(file))
    result = []
    for name in chat.stop_tokens:
        ids = tokenizer.encode(name, add_special_tokens=False).ids
        if len(ids) != 1:
            raise InputError(
                f"stop token {name} is {len(ids)} tokens in {shown(file)}: "
                "take it out of chat.stop_tokens in the profile"
            )
        result += ids
    return result


def write_stop_ids(folder: Path, chat: Chat) -> None:
    """List every stop token in generation_config.json, where any tool looks for them."""
    file = folder / "generation_config.json"
    config = read_json(file) if file.exists() else {}
    ids = stop_ids(folder, chat)
    for known in (config, read_json(folder / "config.json")):
        found = known.get("eos_token_id")
        ids += found if isinstance(found, list) else [found]
    ids = [i for i in dict.fromkeys(ids) if i is not None]
    write_json(file, config | {"eos_token_id": ids})


def chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return read_text(file)
    return read_json(folder / "tokenizer_config.json").get("chat_template")


def check(folder: Path, original: Path, chat: Chat) -> None:
    """Refuse a folder that has other token ids, template or stop tokens than the original."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    expected = Tokenizer.from_file(str(original / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for text in SAMPLES:
        ids = expected.encode(text, add_special_tokens=False).ids
        if loaded.encode(text, add_special_tokens=False) != ids:
            raise InputError(
                f"{shown(folder)}: token ids of {text!r} changed in conversion: get the model with "
                "03_quantization/download_omni_8b.py (--from-folder for a copy), which keeps them"
            )
    template = chat_template(original)
    if not template:
        raise InputError(
            f"{shown(original)} has no chat template: download it again with --force, or choose a "
            "model for chat"
        )
    if loaded.chat_template != template:
        raise InputError(f"{shown(folder)}: the chat template changed in conversion")
    generation = folder / "generation_config.json"
    listed = read_json(generation).get("eos_token_id") if generation.exists() else None
    listed = [listed] if isinstance(listed, int) else listed
    for name, number in zip(chat.stop_tokens, stop_ids(original, chat), strict=True):
        if listed is not None and number not in listed:
            # folder's own file is a copy, and gone by the time that anyone reads this.
            raise InputError(
                f"stop token {name} ({number}) is not in eos_token_id {listed} of "
                f"{shown(original / generation.name)}: add it there, or take it out of "
                "chat.stop_tokens in the profile"
            )
