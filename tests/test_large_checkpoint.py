"""Real layer shapes of HyperCLOVA X SEED Omni 8B: memory of extraction, quantization and chat.

Minutes and up to 30 GB of disk, so all of it is marked slow.
"""

import json
import shutil

import pytest
from omni_checkpoint import EXTRACT, QUANTIZE, mini_project, write_large, write_quantized
from support import peak_of

from injection import conversion, estimate, runtime
from injection.estimate import Machine
from injection.profiles import Project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 12], ids=["8 GB", "16 GB"])
def large(request, tmp_path_factory):
    """A project whose download has the real vocabulary and so many real layers in fp32."""
    project = mini_project(tmp_path_factory.mktemp("large") / "project")
    write_large(project / "models/mini", request.param)
    yield project
    shutil.rmtree(project.root)


def test_memory_does_not_grow_with_the_checkpoint(large):
    checkpoint = sum(f.stat().st_size for f in (large / "models/mini").glob("*.safetensors"))
    assert checkpoint > 8e9
    peak, seconds = peak_of(large, *EXTRACT)
    print(f"\n{checkpoint / 1e9:.1f} GB: extracted in {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    # Importing what the script imports takes 0.2 GB.
    assert peak < 0.5e9

    shutil.rmtree(large / "models/mini")
    peak, seconds = peak_of(large, *QUANTIZE)
    text = conversion.weights_size(large / "models/mini-Text")
    print(f"{text / 1e9:.1f} GB: quantized in {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    assert peak < 12e9


def test_eight_billion_weights_answer(tmp_path):
    """Random 4-bit weights of all 36 layers, through the chat's own path, memory as planned."""
    project = mini_project(tmp_path / "project")
    write_quantized(project / "models/mini-Text-4bit")
    peak, seconds = peak_of(project, "-c", ANSWER)
    found = json.loads((project / "answer.json").read_text())
    g = estimate.KNOWN["naver-hyperclovax/HyperCLOVAX-SEED-Omni-8B"]
    machine = Machine("here", runtime.memory(), gpu=not runtime.on_cpu())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("injection.profiles.ROOT", project.root)
        planned = estimate.chat_memory(Project("mini", "paper"), g, machine, found["tokens"])
    print(
        f"\n{g.parameters / 1e9:.2f} billion weights, {found['tokens']} tokens: {seconds:.0f} s, "
        f"mlx peak {found['peak'] / 1e9:.2f} GB, planned {sum(planned.values()) / 1e9:.2f} GB, "
        f"process {peak / 1e9:.2f} GB"
    )
    assert found["finite"]
    assert abs(found["peak"] / sum(planned.values()) - 1) < 0.15


ANSWER = """
import json
import mlx.core as mx
from injection.models import ChatModel
from injection.profiles import Project
project = Project("mini", "paper")
model = ChatModel(project.base, project.profile.chat)
*_, last = model.stream([{"role": "user", "content": "Hi"}], 2)
json.dump(
    {
        "tokens": last.prompt_tokens + last.generation_tokens,
        "finite": bool(mx.all(mx.isfinite(mx.exp(last.logprobs))).item()),
        "peak": mx.get_peak_memory(),
    },
    open("answer.json", "w"),
)
"""
