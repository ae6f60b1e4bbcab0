"""Take the language model out of the Omni checkpoint: a plain llama that mlx-lm loads.

Reads:   models/HyperCLOVAX-SEED-Omni-8B/ (from download_omni_8b.py)
Writes:  models/HyperCLOVAX-SEED-Omni-8B-Text/, in bfloat16
Command: python 03_quantization/extract_omni_8b_text.py --profile omni_8b

Tensors pass through in slices, so memory does not grow with the checkpoint. Each shard that holds
text becomes one shard of the output; a killed run goes on after the last one that was complete.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import licence, tokenizer_files
from injection.files import (
    InputError,
    inputs,
    is_current,
    mark_current,
    read_json,
    read_text,
    require,
    require_space,
    run,
    shown,
    staged_folder,
    write_json,
)
from injection.profiles import Project, open_project, parser
from injection.progress import Progress

DOWNLOAD = "run 03_quantization/download_omni_8b.py first"
AGAIN = "run 03_quantization/download_omni_8b.py --force"
INDEX = "model.safetensors.index.json"
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
SLICE = 8 * 2**20
MAX_HEADER = 100_000_000
COPIED = (*tokenizer_files.FILES, "generation_config.json", "origin.json")
# A string, which may hold what looks like a comment, or a comment.
STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|#[^\n]*|/\*.*?\*/', re.DOTALL)
FROM_CONFIG = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: bytes start..end of a shard."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    start: int
    end: int


def read_config(path: Path) -> dict:
    """A config.json that may hold #, // and /* */ comments."""
    text = read_text(path)
    plain = STRING_OR_COMMENT.sub(lambda m: m[1] or "\n" * m[0].count("\n"), text)
    try:
        return json.loads(plain)
    except json.JSONDecodeError as error:
        raise InputError(f"{shown(path)} line {error.lineno}: not JSON ({error.msg})") from None


def text_config(path: Path) -> dict:
    """The config of the language model alone, with nothing left to a loader's defaults."""
    text = read_config(path).get("text_config", {})
    if (kind := text.get("model_type")) != "llama":
        raise InputError(f"{shown(path)}: text_config.model_type is {kind}, only llama is known")
    # transformers 5 writes rope_parameters, 4 wrote rope_theta and rope_scaling.
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise InputError(f"{shown(path)}: rope scaling {kind} is not supported")
    values = {key: text.get(key) for key in FROM_CONFIG}
    values["rope_theta"] = text.get("rope_theta", rope.get("rope_theta"))
    if missing := [key for key, value in values.items() if value is None]:
        raise InputError(f"{shown(path)}: text_config has no {', '.join(missing)}")
    ids = {k: text[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in text}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": text.get("hidden_act", "silu"),
        **values,
        "head_dim": text.get("head_dim") or values["hidden_size"] // values["num_attention_heads"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **ids,
    }


def expected_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the llama that config describes."""
    hidden, inner, vocabulary = (
        config[k] for k in ("hidden_size", "intermediate_size", "vocab_size")
    )
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes = {
        f"model.layers.{number}.{name}.weight": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    ends = {"model.embed_tokens": (vocabulary, hidden), "lm_head": (vocabulary, hidden)}
    ends["model.norm"] = (hidden,)
    return shapes | {f"{name}.weight": shape for name, shape in ends.items()}


def read_header(shard: Path) -> tuple[dict, int]:
    """(tensor entries, position of the first data byte) of a safetensors file that is whole."""
    size = require(shard, AGAIN).stat().st_size
    with open(shard, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 0 < length <= min(size - 8, MAX_HEADER):
            raise InputError(f"{shown(shard)} is truncated or not safetensors: {AGAIN}")
        try:
            entries = json.loads(f.read(length))
        except ValueError:
            raise InputError(f"{shown(shard)} has a damaged header: {AGAIN}") from None
    entries.pop("__metadata__", None)
    whole = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
    if size != whole:
        raise InputError(f"{shown(shard)} has {size} bytes, its header says {whole}: {AGAIN}")
    return entries, 8 + length


def find_tensors(folder: Path, prefix: str) -> list[Tensor]:
    """The tensors of the text part under their llama names, in the order of the shards."""
    weight_map = read_json(require(folder / INDEX, DOWNLOAD)).get("weight_map", {})
    for file in sorted(folder.glob("*.safetensors")):
        if file.name not in weight_map.values():
            raise InputError(f"{shown(file)} is not in {INDEX}: delete one or the other")
    found = []
    for shard in sorted({s for name, s in weight_map.items() if name.startswith(prefix)}):
        entries, data = read_header(folder / shard)
        for name in (n for n, s in weight_map.items() if s == shard and n.startswith(prefix)):
            if name not in entries:
                raise InputError(f"{shown(folder / shard)} lacks {name}, which {INDEX} names")
            entry = entries[name]
            start, end = (data + offset for offset in entry["data_offsets"])
            short = name.removeprefix(prefix)
            shape = tuple(entry["shape"])
            found.append(Tensor(short, entry["dtype"], shape, folder / shard, start, end))
    return sorted(found, key=lambda t: (t.shard, t.start))


def check_tensors(tensors: list[Tensor], shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Refuse anything but exactly the tensors that config.json describes."""
    names = {t.name for t in tensors}
    if missing := sorted(shapes.keys() - names):
        raise InputError(f"{where} lacks {missing[0]} ({len(missing)} missing): {AGAIN}")
    for tensor in tensors:
        what = f"{shown(tensor.shard)}: {tensor.name}"
        if tensor.name not in shapes:
            raise InputError(f"{what} is unknown: config.json describes a llama without it")
        if tensor.shape != shapes[tensor.name]:
            raise InputError(f"{what} is {tensor.shape}, config.json says {shapes[tensor.name]}")
        if tensor.dtype not in BYTES:
            raise InputError(f"{what} is {tensor.dtype}, only {', '.join(BYTES)} are known")
        if tensor.end - tensor.start != prod(tensor.shape) * BYTES[tensor.dtype]:
            raise InputError(f"{what} has the wrong number of bytes: {AGAIN}")


def by_shard(tensors: list[Tensor]) -> dict[str, list[Tensor]]:
    """{output file: its tensors}, one for each input shard."""
    shards = list(dict.fromkeys(t.shard for t in tensors))
    return {
        f"model-{number:05}-of-{len(shards):05}.safetensors": [
            t for t in tensors if t.shard == shard
        ]
        for number, shard in enumerate(shards, 1)
    }


def size_in_bfloat16(tensors: list[Tensor]) -> int:
    return sum(2 * prod(t.shape) for t in tensors)


def header(tensors: list[Tensor]) -> bytes:
    """A safetensors header: length, then JSON padded to a multiple of 8 bytes."""
    entries, position = {"__metadata__": {"format": "pt"}}, 0
    for tensor in tensors:
        end = position + 2 * prod(tensor.shape)
        shape = list(tensor.shape)
        entries[tensor.name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def slices(tensor: Tensor) -> Iterator[bytes]:
    """Yield the tensor's bytes in bfloat16, slice by slice."""
    import mlx.core as mx
    import numpy as np

    with open(tensor.shard, "rb") as f:
        f.seek(tensor.start)
        for position in range(tensor.start, tensor.end, SLICE):
            raw = f.read(min(SLICE, tensor.end - position))
            if tensor.dtype == "BF16":
                yield raw
                continue
            values = mx.array(np.frombuffer(raw, "<f4" if tensor.dtype == "F32" else "<f2"))
            if not mx.isfinite(values).all().item():
                raise InputError(f"{shown(tensor.shard)}: {tensor.name} holds no numbers: {AGAIN}")
            # numpy has no bfloat16: its bits pass as integers.
            yield np.array(values.astype(mx.bfloat16).view(mx.uint16)).tobytes()


def whole_shards(names: Iterable[str], staging: Path, made_from: dict) -> set[str]:
    """Shards that an earlier, killed run completed; anything else in staging is deleted."""
    done = {name for name in names if is_current(staging / name, made_from)}
    for file in staging.iterdir():
        if not any(name in file.name for name in done):
            file.unlink()
    return done


def write_shards(
    shards: dict[str, list[Tensor]], done: set[str], staging: Path, made_from: dict
) -> None:
    """Write the shards that are not done; a stamp with its hash says that one is whole."""
    written = sum(size_in_bfloat16(shards[name]) for name in done)
    total = sum(size_in_bfloat16(tensors) for tensors in shards.values())
    bar = Progress("megabytes", total // 10**6 + 1)
    for name in sorted(shards.keys() - done):
        with open(staging / name, "wb") as f:
            f.write(header(shards[name]))
            for tensor in shards[name]:
                for piece in slices(tensor):
                    f.write(piece)
                    written += len(piece)
                    bar.update(written // 10**6, name)
        mark_current(staging / name, made_from)
    bar.update(bar.total)


def write_small_files(
    project: Project, shards: dict[str, list[Tensor]], config: dict, staging: Path
) -> None:
    """Index, config, tokenizer, stop tokens and licence, checked before the weights are copied."""
    weight_map = {t.name: name for name, tensors in shards.items() for t in tensors}
    parameters = sum(prod(t.shape) for tensors in shards.values() for t in tensors)
    metadata = {"total_parameters": parameters, "total_size": 2 * parameters}
    write_json(staging / INDEX, {"metadata": metadata, "weight_map": weight_map})
    write_json(staging / "config.json", config)
    for name in COPIED:
        if (project.download / name).exists():
            shutil.copyfile(project.download / name, staging / name)
    licence.pass_on(project.download, staging, project.profile, "text part taken out, in bfloat16")
    tokenizer_files.keep_token_ids(staging)
    tokenizer_files.write_stop_ids(staging, project.profile.chat)
    tokenizer_files.check(staging, project.download, project.profile.chat)


def check_disk(project: Project, needed: int) -> None:
    staging = project.source.with_name(f".{project.source.name}.partial")
    needed -= sum(f.stat().st_size for f in staging.glob("*.safetensors"))
    require_space(project.source, needed)


def extract(project: Project, made_from: dict) -> None:
    prefix = project.profile.source.text_prefix
    config = text_config(require(project.download / "config.json", DOWNLOAD))
    tensors = find_tensors(project.download, prefix)
    check_tensors(tensors, expected_shapes(config), shown(project.download))
    check_disk(project, size_in_bfloat16(tensors))
    shards = by_shard(tensors)
    with staged_folder(project.source, resume=True) as staging:
        done = whole_shards(shards, staging, made_from)
        write_small_files(project, shards, config, staging)
        write_shards(shards, done, staging, made_from)
        for stamp in staging.glob(".*.stamp.json"):
            stamp.unlink()
    mark_current(project.source, made_from)
    print(f"wrote {shown(project.source)}: {len(tensors)} tensors, {len(shards)} shards")


def made_of(project: Project) -> dict:
    """What the text part depends on; it keeps its origin, for the download may be deleted."""
    folder = project.download if project.download.exists() else project.source
    origin = read_json(require(folder / "origin.json", DOWNLOAD))
    return inputs({"origin": origin, "source": project.profile.source.model_dump()})


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--force", action="store_true", help="extract again")
    args = args.parse_args()
    args.profile = args.profile or "omni_8b"
    project = open_project(args)
    if project.download == project.source:
        raise InputError(f"profile {project.profile_name} has no text_prefix: nothing to extract")
    made_from = made_of(project)
    if not args.force and is_current(project.source, made_from):
        print(f"up to date: {shown(project.source)}")
        return
    require(project.download, AGAIN)
    extract(project, made_from)


if __name__ == "__main__":
    run(main)
