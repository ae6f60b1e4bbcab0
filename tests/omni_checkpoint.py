"""A miniature of the HyperCLOVA X SEED Omni repository: same names and keys, tiny sizes."""

import json
from pathlib import Path

import mlx.core as mx
import yaml
from support import ROOT, ProjectCopy, copy_tree

PREFIX = "model.language_model."
SPECIAL = (
    *("<|begin_of_text|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|stop|>"),
    *("<|endofturn|>", "<|fim_prefix|>", "<|jupyter_start|>", "<|IMAGE_PAD|>", "<|AUDIO_PAD|>"),
)
TEXT_TOKENS, VOCABULARY = 700, 768
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


def text_shapes() -> dict[str, tuple[int, ...]]:
    """Written out by hand, on purpose not with the script's own function."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, 64)}
    for layer in range(4):
        name = f"model.layers.{layer}."
        shapes |= {
            f"{name}input_layernorm.weight": (64,),
            f"{name}self_attn.q_proj.weight": (64, 64),
            f"{name}self_attn.k_proj.weight": (32, 64),
            f"{name}self_attn.v_proj.weight": (32, 64),
            f"{name}self_attn.o_proj.weight": (64, 64),
            f"{name}post_attention_layernorm.weight": (64,),
            f"{name}mlp.gate_proj.weight": (128, 64),
            f"{name}mlp.up_proj.weight": (128, 64),
            f"{name}mlp.down_proj.weight": (64, 128),
        }
    return shapes | {"model.norm.weight": (64,), "lm_head.weight": (VOCABULARY, 64)}


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
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
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
