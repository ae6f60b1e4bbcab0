"""A miniature of the HyperCLOVA X SEED Omni repository: same names and keys, tiny sizes.

And, for slow tests, checkpoints with layers of the real shapes.
"""

import json
import shutil
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np
import yaml
from support import ROOT, ProjectCopy, copy_tree

from injection.profiles import Profile

MINI = ("--profile", "mini")
DOWNLOAD = ("03_quantization/download_omni_8b.py", *MINI)
EXTRACT = ("03_quantization/extract_omni_8b_text.py", *MINI)
QUANTIZE = ("03_quantization/quantize.py", *MINI)
PREFIX = "model.language_model."
SPECIAL = (
    *("<|begin_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|stop|>"),
    *("<|endofturn|>", "<|fim_prefix|>", "<|jupyter_start|>", "<|IMAGE_PAD|>", "<|AUDIO_PAD|>"),
)
TEXT_TOKENS, VOCABULARY = 700, 768
# The codes of sounds and pictures that fill up the vocabulary.
CODES = [f"<|audio{i:04}|>" for i in range(20)]
CODES += [f"<|vision{i:05}|>" for i in range(VOCABULARY - TEXT_TOKENS - len(SPECIAL) - 20)]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 8192,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": TEXT_TOKENS,
    "eos_token_id": TEXT_TOKENS + 1,
    "pad_token_id": None,
    "torch_dtype": "float32",
}
# The comments, and what only looks like one inside a string.
CONFIG = """{
  // a line comment
  "architectures": ["HCXVisionV2ForCausalLM"],  # another kind
  "auto_map": {"AutoModelForCausalLM": "modeling_vlm.HCXVisionV2ForCausalLM"},
  "model_type": "vlm",
  /* a block
     of two lines */
  "_name_or_path": "https://example.com//x#y /* z */ \\" // w",
  "image_token_id": 128062, "discrete_image_token_id": 128069, "audio_token_id": 128071,
  "vision_config": {"model_type": "qwen2_5_vl", "hidden_size": 8},
  "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 8},
  "discrete_vision_config": {"model_type": "ta_tok"},
  "discrete_audio_config": {"model_type": "cosyvoice2"},
  "text_config": %s
}"""
TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>tool\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- message.content.split('</think>')[-1].lstrip('\\n') }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- if skip_reasoning is defined and skip_reasoning is true %}{{- '\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""


def text_shapes(config: dict = TEXT_CONFIG) -> dict[str, tuple[int, ...]]:
    """Written out by hand, on purpose not with the script's own function."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    ends = (config["vocab_size"], hidden)
    shapes = {"model.embed_tokens.weight": ends}
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}input_layernorm.weight": (hidden,),
            f"{name}self_attn.q_proj.weight": (queries, hidden),
            f"{name}self_attn.k_proj.weight": (keys, hidden),
            f"{name}self_attn.v_proj.weight": (keys, hidden),
            f"{name}self_attn.o_proj.weight": (hidden, queries),
            f"{name}post_attention_layernorm.weight": (hidden,),
            f"{name}mlp.gate_proj.weight": (inner, hidden),
            f"{name}mlp.up_proj.weight": (inner, hidden),
            f"{name}mlp.down_proj.weight": (hidden, inner),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": ends}


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """One or two tensors of every part that is not text."""
    return {
        "model.vision_model.patch_embed.proj.weight": (8, 3, 2, 4, 4),
        "model.vision_model.blocks.0.attn.qkv.weight": (24, 8),
        "model.mm_projector.0.weight": (64, 8),
        "model.discrete_vision_model.encoder.layers.0.mlp.fc1.weight": (16, 8),
        "model.discrete_vision_model.bottleneck.regularizer.embedding.weight": (32, 4),
        "model.audio_model.conv1.weight": (8, 4, 3),
        "model.audio_model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.audio_projector.linear.weight": (64, 8),
        "model.discrete_audio_model.encoder.blocks.0.attn.fsmn_block.weight": (8, 1, 3),
        "model.video_audio_compressor.layers.0.mixer.in_proj.weight": (16, 8),
    }


def random_weights(shapes: dict) -> dict[str, mx.array]:
    """fp32 values that bfloat16 cannot hold exactly; large enough for answers to differ."""
    mx.random.seed(11)
    weights = {}
    for name, shape in shapes.items():
        norm = "norm" in name
        weights[name] = 1 + mx.random.normal(shape) / 20 if norm else mx.random.normal(shape) / 5
    return weights


def write_weights(folder: Path) -> None:
    """Ten shards: two without text, the third mixed, then text."""
    text = {PREFIX + name: shape for name, shape in text_shapes().items()}
    weights = random_weights(text | tower_shapes())
    names, towers = list(text), list(tower_shapes())
    per_shard = -(-len(names) // 8)
    groups = [towers[:5], towers[5:9]]
    groups += [names[i : i + per_shard] for i in range(0, len(names), per_shard)]
    groups[2] = groups[2] + towers[9:]
    assert len(groups) == 10
    weight_map = {}
    for number, group in enumerate(groups, 1):
        shard = f"model-{number:05}-of-00010.safetensors"
        mx.save_safetensors(str(folder / shard), {n: weights[n] for n in group}, {"format": "pt"})
        weight_map |= {name: shard for name in group}
    total = sum(w.nbytes for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE with a Split pre-tokenizer, under the class name that makes it a trap."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Code and numbers, so that merges exist which another pre-tokenizer would miss.
    texts = [(ROOT / f).read_text() for f in ("data/general/perplexity.txt", "run.sh")]
    texts += [f"(foo).\n\n(bar){n}{n + 7}.\n" for n in range(100, 400)] * 3
    trainer = trainers.BpeTrainer(vocab_size=TEXT_TOKENS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == TEXT_TOKENS
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (*SPECIAL, *CODES)])
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "auto_map": {"AutoProcessor": "processing_vlm.HCXVisionV2Processor"},
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "unk_token": SPECIAL[1],
        "pad_token": SPECIAL[1],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_repository(folder: Path) -> Path:
    folder.mkdir()
    write_weights(folder)
    write_tokenizer(folder)
    (folder / "config.json").write_text(CONFIG % json.dumps(TEXT_CONFIG, indent=2))
    generation = {"eos_token_id": TEXT_TOKENS + 1, "temperature": 0.5}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "LICENSE").write_text("licence")
    (folder / "README.md").write_text("readme")
    # What must never be copied.
    (folder / "modeling_vlm.py").write_text("raise SystemExit('code of the repository ran')")
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.pkl", "preview.png"):
        (folder / name).write_bytes(b"\x80\x04.")
    return folder


def big_config(layers: int) -> dict:
    """The real model's text part with so many of its 36 layers."""
    return TEXT_CONFIG | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 200704,
    }


BLOCKS = {
    # 4 MB each, written over and over; scales and biases make weights of -0.024 to 0.021.
    "F32": (np.random.default_rng(0).standard_normal(2**20) / 50).astype("<f4").tobytes(),
    "U32": np.random.default_rng(0).bytes(2**22),
    "scales": (np.full(2**21, 0.003, "<f4").view("<u4") >> 16).astype("<u2").tobytes(),
    "biases": (np.full(2**21, -0.024, "<f4").view("<u4") >> 16).astype("<u2").tobytes(),
    "weight": (np.full(2**21, 1.0, "<f4").view("<u4") >> 16).astype("<u2").tobytes(),
}
WIDTH = {"F32": 4, "U32": 4, "BF16": 2}


def write_streamed(folder: Path, tensors: dict[str, tuple[str, tuple]], per_shard: int) -> None:
    """A checkpoint of {name: (type, shape)}, written block by block: little memory for any size."""
    names = list(tensors)
    groups = [names[i : i + per_shard] for i in range(0, len(names), per_shard)]
    weight_map, total = {}, 0
    for number, group in enumerate(groups, 1):
        shard = f"model-{number:05}-of-{len(groups):05}.safetensors"
        entries, sizes, end = {}, [], 0
        for name in group:
            kind, shape = tensors[name]
            sizes.append(prod(shape) * WIDTH[kind])
            offsets = [end, end + sizes[-1]]
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
            end = offsets[1]
            weight_map[name] = shard
        header = json.dumps(entries).encode()
        with open(folder / shard, "wb") as f:
            f.write(len(header).to_bytes(8, "little") + header)
            for name, size in zip(group, sizes, strict=True):
                kind = tensors[name][0]
                block = BLOCKS[name.rsplit(".", 1)[-1] if kind == "BF16" else kind]
                for start in range(0, size, len(block)):
                    f.write(block[: size - start])
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_large(folder: Path, layers: int) -> None:
    """What download_omni_8b.py leaves of a checkpoint of fp32 layers of real shape."""
    folder.mkdir()
    config = big_config(layers)
    tensors = {PREFIX + name: ("F32", shape) for name, shape in text_shapes(config).items()}
    write_streamed(folder, tensors, per_shard=8)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"text_config": config}))
    (folder / "origin.json").write_text(json.dumps({"repository": "large", "revision": "main"}))


def write_quantized(folder: Path) -> None:
    """All 36 layers in 4 bits, random, as quantize.py leaves them."""
    folder.mkdir()
    config = big_config(36) | {"quantization": {"bits": 4, "group_size": 64}}
    tensors = {}
    for name, shape in text_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = ("BF16", shape)
            continue
        rows, columns = shape
        tensors[name] = ("U32", (rows, columns // 8))
        for part in ("scales", "biases"):
            tensors[name.replace("weight", part)] = ("BF16", (rows, columns // 64))
    write_streamed(folder, tensors, per_shard=120)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = folder / "tokenizer_config.json"
    kind = json.loads(tokenizer.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer.write_text(json.dumps(kind))


def mini_project(target: Path) -> ProjectCopy:
    """A copy of the project with a profile `mini`: omni_8b with a small LoRA."""
    copy = copy_tree(target)
    profile = yaml.safe_load((ROOT / "models/omni_8b.yaml").read_text())
    profile["source"] |= {"name": "naver-hyperclovax/mini", "folder": "mini-Text"}
    profile["quantization"]["folder"] = "mini-Text-4bit"
    profile["lora"] |= {"layers": 2, "rank": 4}
    profile["generation"]["max_tokens"] = 8
    (copy / "models/mini.yaml").write_text(yaml.safe_dump(profile))
    text = copy / "data/general/perplexity.txt"
    text.write_text(text.read_text()[:1500])
    return copy


def copy_of(project: ProjectCopy, folder) -> ProjectCopy:
    shutil.copytree(project.root, folder / "project")
    copy = ProjectCopy(folder / "project")
    copy.log = dict(project.log)
    return copy


def profile(project: ProjectCopy) -> Profile:
    return Profile.model_validate(yaml.safe_load((project / "models/mini.yaml").read_text()))
