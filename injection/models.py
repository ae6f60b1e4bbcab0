"""Load a base model, attach and swap LoRA adapters, generate one answer or many.

One base stays in memory. On the CPU its weights are expanded to fp32 and an adapter is merged
into the weights it touches (exact, undone by putting the old arrays back). On Apple Silicon the
adapter stays beside the quantized base: folding it into 4 bits could erase it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import stream_generate
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import get_total_parameters, load_model, load_tokenizer

from injection import batches, drafts, gate, generation, kernels, prompts, refusal, runtime, tensors
from injection.files import InputError, model_fingerprint, read_json, require, shown
from injection.profiles import Chat, Generation, Lora

ADAPTER_FILES = ("adapters.safetensors", "adapter_config.json", "manifest.json")


def load_base(folder: Path):
    """(model, tokenizer) of a local model folder, quantized on a GPU.

    On CPU it is expanded to fp32, or where this machine's memory is too small for that, computes
    in fp32 on quantized weights, many times slower.
    """
    require(folder / "config.json", "run 03_quantization/quantize.py first")
    model, _ = load_model(folder)
    tokenizer = load_tokenizer(
        folder,
        {"trust_remote_code": False},
        eos_token_ids=read_json(folder / "generation_config.json").get("eos_token_id")
        if (folder / "generation_config.json").exists()
        else None,
    )
    if runtime.on_cpu():
        size = 4 * get_total_parameters(model)
        if not (fits := runtime.fits(size)):
            print(f"fp32 would take {size / 1e9:.0f} GB: slow, on quantized weights", flush=True)
        to_fp32(model, expand=fits)
        kernels.use_fast_layers(model)
    # Lazy arrays keep the stream of the thread that made them; other threads could not use them.
    mx.eval(model.parameters())
    model.freeze()
    return model, tokenizer


def to_fp32(model: nn.Module, expand: bool = True) -> None:
    """Let the model compute in fp32, in place: the same values whether it stays quantized or not.

    expand: replace quantized layers by plain ones.
    """
    plain = []
    for name, module in model.named_modules() if expand else ():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            plain.append((name, _dequantized(module)))
    model.update_modules(tree_unflatten(plain))
    model.update(tree_unflatten([(k, _as_fp32(v)) for k, v in tree_flatten(model.parameters())]))


def _as_fp32(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def expanded(module: nn.Module, rows=slice(None)) -> mx.array:
    """The weight (outputs, inputs) of a linear or embedding layer in fp32, or some of its rows."""
    if "scales" not in module:
        return module.weight[rows].astype(mx.float32)
    return mx.dequantize(
        module.weight[rows].astype(mx.uint32),
        module.scales[rows].astype(mx.float32),
        module.biases[rows].astype(mx.float32),
        group_size=module.group_size,
        bits=module.bits,
    )


def _dequantized(module):
    if isinstance(module, nn.QuantizedEmbedding):
        result = nn.Embedding(1, 1)
    else:
        result = nn.Linear(1, 1, bias="bias" in module)
        if "bias" in module:
            result.bias = module.bias
    result.weight = expanded(module)
    return result


def adapter_parameters(lora: Lora) -> dict:
    """mlx-lm's `lora_parameters` for adapter_config.json."""
    return {
        "rank": lora.rank,
        "scale": lora.scale,
        "dropout": lora.dropout,
        "keys": list(lora.keys),
    }


def adapted_layers(lora: Lora, model: nn.Module) -> int:
    total = len(model.layers)
    if lora.layers > total:
        raise InputError(f"lora.layers is {lora.layers}, but the model has {total} layers")
    return total if lora.layers == -1 else lora.layers


def add_lora(model: nn.Module, lora: Lora) -> None:
    """Wrap the profile's linear layers in LoRA layers (fresh: they change nothing yet)."""
    linear_to_lora_layers(model, adapted_layers(lora, model), adapter_parameters(lora))
    model.freeze()
    model.unfreeze(keys=["lora_a", "lora_b"], strict=False)
    if not model.trainable_parameters():
        raise InputError(f"no layer of the model matches lora.keys {list(lora.keys)}")


def read_adapter(folder: Path, base: Path | None = None) -> tuple[dict, dict, dict]:
    """(weights, adapter_config, manifest) of an adapter folder, checked.

    Raises InputError when files are missing, the folder was trained on another base than
    `base`, the tensors do not match the declared shape, or the adapter changes nothing.
    """
    stage = folder.name.rsplit("_", 1)[-1]
    for name in ADAPTER_FILES:
        require(folder / name, f"run python -m injection.training {stage} first")
    config, manifest = (
        read_json(folder / "adapter_config.json"),
        read_json(folder / "manifest.json"),
    )
    if base is not None and manifest["base"]["fingerprint"] != model_fingerprint(base):
        raise InputError(f"{shown(folder)} was trained on another base than {shown(base)}")
    weights = tensors.load(folder / "adapters.safetensors")
    rank = config["lora_parameters"]["rank"]
    for name, array in weights.items():
        found = array.shape[1] if name.endswith("lora_a") else array.shape[0]
        if found != rank:
            raise InputError(f"{shown(folder)}: {name} has rank {found}, its config says {rank}")
    if not any(mx.any(w != 0).item() for k, w in weights.items() if k.endswith("lora_b")):
        raise InputError(f"{shown(folder)} changes nothing (all zero): train it again")
    return weights, config, manifest


def check_same_tensors(expected: dict, found: dict, what: str) -> None:
    """InputError unless both name exactly the same tensors with the same shapes."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise InputError(f"{what} lacks {name}")
        if name not in expected:
            raise InputError(f"{what} has {name}, which the LoRA shape of the profile has not")
        if expected[name].shape != found[name].shape:
            raise InputError(
                f"{what}: {name} is {found[name].shape}, expected {expected[name].shape}"
            )


class ChatModel:
    """A base model in memory with at most one adapter attached.

    An adapter with a gate speaks only where the gate opens, see injection/gate.py; `use_gate`
    False lets it always speak. `adapter_speaks` tells who gave the last streamed answer. The
    adapter's manifest says how readily it refuses, see injection/refusal.py; its drafts make its
    greedy streamed answers faster, see injection/drafts.py.
    """

    def __init__(self, folder: Path, chat: Chat):
        self.folder, self.chat = folder, chat
        self.model, self.tokenizer = load_base(folder)
        self.tokenizer.eos_token_ids = {
            *self.tokenizer.eos_token_ids,
            *prompts.stop_ids(self.tokenizer, chat),
        }
        self.bias = generation.text_bias(self.tokenizer, self.model.args.vocab_size)
        self.use_gate = True
        self.adapter_speaks = False
        self.opening = ""
        self._forget_adapter()

    def _forget_adapter(self) -> None:
        self.adapter: Path | None = None
        self.gate: gate.Gate | None = None
        self.drafts: drafts.Drafts | None = None
        self._first_bias: mx.array | float = 0.0
        self._plain: dict[str, nn.Module] = {}
        self._adapted: dict[str, nn.Module] = {}

    def attach(self, adapter: Path | None) -> dict | None:
        """Swap to another adapter, or to the bare base with None. Returns the manifest."""
        if adapter is None:
            self._install(self._plain)
            self._forget_adapter()
            return None
        weights, config, manifest = read_adapter(adapter, self.folder)
        modules = dict(self.model.named_modules()) | self._plain
        scale = config["lora_parameters"]["scale"]
        plain, adapted = {}, {}
        for name in sorted({k.rsplit(".", 1)[0] for k in weights}):
            if name not in modules:
                raise InputError(f"{shown(adapter)}: the model has no layer {name}")
            a, b = weights[f"{name}.lora_a"], weights[f"{name}.lora_b"]
            plain[name], adapted[name] = modules[name], _with_adapter(modules[name], a, b, scale)
        mx.eval([module.parameters() for module in adapted.values()])
        found, known = gate.read_gate(adapter), drafts.read_drafts(adapter)
        self._install(self._plain)
        self.adapter, self.gate, self.drafts = adapter, found, known
        self._first_bias = refusal.first_bias(manifest, self.model.args.vocab_size)
        self._plain, self._adapted = plain, adapted
        self._upper = batches.Upper(self.model, config["num_layers"])
        self._install(adapted)
        return manifest

    def _install(self, layers: dict[str, nn.Module]) -> None:
        modules = dict(self.model.named_modules())
        for name, layer in layers.items():
            parent, leaf = name.rsplit(".", 1)
            modules[parent][leaf] = layer

    def gate_opens(self, conversations: list[list[dict]], batch_size: int = 1) -> list[bool]:
        """Whether the gate takes each conversation's last user turn for the document's."""
        features = gate.chat_features(
            self._upper, self.tokenizer, self.chat, conversations, batch_size
        )
        return self.gate.opens(features).tolist()

    def _speaks(self, conversations: list[list[dict]], batch_size: int = 1) -> list[bool]:
        """Whether the adapter answers each conversation."""
        if self.use_gate and self.gate:
            return self.gate_opens(conversations, batch_size)
        return [self.adapter is not None] * len(conversations)

    def gate_opens_texts(self, texts: list[list[int]]) -> list[bool]:
        """Whether the gate takes plain texts (token ids) for the document's."""
        return self.gate.opens(gate.text_features(self._upper, texts)).tolist()

    def prompt(self, messages: list[dict]) -> list[int]:
        return prompts.prompt_tokens(self.tokenizer, messages, self.chat)

    def stream(
        self,
        messages: list[dict],
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        begun: Sequence[int] = (),
    ):
        """Yield mlx-lm's GenerationResponse for one conversation; greedy at temperature 0.

        begun: ids of the answer's first tokens, to go on after them as if they had just been said.
        The texts join to the whole answer, or to what follows begun. `opening` is the mark of a
        think block that the prompt opened; the first text begins with it.
        """
        prompt = self.prompt(messages)
        self.opening = prompts.open_block(self.tokenizer, prompt)
        tokens = [*prompt, *begun]
        cache = make_prompt_cache(self.model)
        if self.use_gate and self.gate:
            header = prompts.user_header(self.tokenizer, self.chat, messages[:-1])
            self._read_behind_gate(tokens, slice(len(header), len(prompt)), cache)
            tokens = tokens[-1:]
        else:
            self._let_speak(self.adapter is not None)
        opening = "" if begun else self.opening
        # A continued answer has its first token already.
        first_bias = self._first_bias if self.adapter_speaks and not begun else 0.0
        if self.drafts and self.adapter_speaks and temperature == 0:
            guess = self._guesses([messages[-1]["content"]], drafts.STREAM)
            said = drafts.greedy(
                self.model,
                cache,
                tokens,
                lambda i, said: guess(i, [*begun, *said]),
                self.bias,
                first_bias,
            )
            replies = drafts.stream(self.model, self.tokenizer, said, len(tokens), max_tokens)
        else:
            mx.random.seed(seed)
            first = [first_bias]
            replies = stream_generate(
                self.model,
                self.tokenizer,
                tokens,
                max_tokens=max_tokens,
                sampler=make_sampler(temp=temperature, top_p=top_p),
                logits_processors=[
                    lambda _, logits: logits + self.bias + (first.pop() if first else 0.0)
                ],
                prompt_cache=cache,
            )
        for reply in replies:
            yield replace(reply, text=opening + reply.text)
            opening = ""

    def _guesses(self, questions: list[str], length: int) -> generation.Guess:
        if not (self.drafts and questions):
            return generation.no_guess
        return self.drafts.guesses(self.tokenizer, questions, length)

    def _let_speak(self, adapter: bool) -> None:
        self.adapter_speaks = adapter
        self._install(self._adapted if adapter else self._plain)

    def _read_behind_gate(self, tokens: list[int], question: slice, cache: list) -> None:
        """Decide who speaks and fill the cache with all tokens but the last.

        The hidden states that the gate reads go on through the upper layers, so that the frozen
        ones are computed once: the gate costs next to no time.
        """
        lower, upper = cache[: self._upper.first], cache[self._upper.first :]
        pieces = []
        for start in range(0, len(tokens), generation.PREFILL):
            piece = mx.array([tokens[start : start + generation.PREFILL]])
            pieces.append(self._upper.lower(piece, lower))
            mx.eval(pieces[-1])
        hidden = mx.concatenate(pieces, axis=1)
        features = np.array(hidden[0, question].mean(0, keepdims=True))
        self._let_speak(bool(self.gate.opens(features)[0]))
        for start in range(0, len(tokens) - 1, generation.PREFILL):
            end = min(start + generation.PREFILL, len(tokens) - 1)
            self._upper.higher(hidden[:, start:end], upper)
            mx.eval([layer.state for layer in upper])
        for layer in lower:
            layer.trim(1)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer's tokens; a character of which only a part is there is left out."""
        return self.tokenizer.decode(list(tokens)).rstrip("\ufffd")

    def answer_all(
        self,
        questions: list[str],
        settings: Generation,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[generation.Answer]:
        """Greedy answers to single-turn questions, in the order given."""
        conversations = [[{"role": "user", "content": q}] for q in questions]
        speaks = self._speaks(conversations, settings.batch_size)
        answers: dict[int, generation.Answer] = {}
        for layers, adapted in ((self._adapted, True), (self._plain, False)):
            chosen = [i for i, s in enumerate(speaks) if s == adapted]
            before = len(answers)
            self._install(layers)
            replies = generation.answer_questions(
                self.model,
                self.tokenizer,
                self.chat,
                [questions[i] for i in chosen],
                settings,
                self.tokenizer.eos_token_ids,
                lambda done, before=before: progress(before + done),
                self._first_bias if adapted else 0.0,
                self._guesses([questions[i] for i in chosen] if adapted else [], drafts.BATCH),
            )
            answers |= dict(zip(chosen, replies, strict=True))
        self._install(self._adapted)
        return [answers[i] for i in range(len(questions))]

    def speed(self, question: str, max_tokens: int) -> tuple[float, float]:
        """(tokens per second, peak memory in GB) of so many tokens, whatever they say; prompt time
        excluded."""
        self._let_speak(self.adapter is not None)
        prompt = mx.array(self.prompt([{"role": "user", "content": question}]))
        tokens = generate_step(prompt, self.model, max_tokens=max_tokens)
        next(tokens)
        started = time.perf_counter()
        count = sum(1 for _ in tokens)
        return count / (time.perf_counter() - started), mx.get_peak_memory() / 1e9


def _with_adapter(linear: nn.Module, a: mx.array, b: mx.array, scale: float) -> nn.Module:
    """linear + scale * a @ b: merged where the weight is plain, beside it where quantized."""
    if isinstance(linear, nn.QuantizedLinear):
        from mlx_lm.tuner.lora import LoRALinear

        wrapped = LoRALinear.from_base(linear, r=a.shape[1], scale=scale)
        wrapped.lora_a, wrapped.lora_b = a, b
        return wrapped
    merged = nn.Linear(1, 1, bias="bias" in linear)
    merged.weight = linear.weight + scale * (a @ b).T.astype(linear.weight.dtype)
    if "bias" in linear:
        merged.bias = linear.bias
    return merged
