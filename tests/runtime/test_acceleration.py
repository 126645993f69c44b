"""What makes a step fast changes nothing that it computes."""

import pytest
import torch

from ssl_bench.config.options import BackboneOptions
from ssl_bench.models.backbone import Backbone
from ssl_bench.runtime.acceleration import BLOCKS, compile_blocks, write_out_attention

NETWORKS = ["vit_pico_patch4_32", "beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano"]


def network(name: str) -> Backbone:
    torch.manual_seed(0)
    return Backbone(BackboneOptions(name, img_size=32)).eval()


def test_effective_precision_is_asked_for_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_bench.runtime.acceleration import effective_precision

    assert effective_precision("16-mixed", "cpu") == "16-mixed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for capable, expected in (({"amx_bf16": True}, "bf16-mixed"), ({"avx2": True}, "32-true")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capable=capable: capable, raising=False)
        assert effective_precision("auto", "cpu") == expected


@pytest.mark.parametrize("name", NETWORKS[:2])
def test_attention_written_out_is_the_fused_one(name: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    fused, plain = network(name), network(name)
    write_out_attention(plain)
    assert any(getattr(module, "fused_attn", False) for module in fused.modules())
    assert not any(getattr(module, "fused_attn", False) for module in plain.modules())
    torch.testing.assert_close(plain(images), fused(images))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_is_compiled_in_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    backbone = network(name)
    names = list(backbone.state_dict())
    compile_blocks(backbone)
    blocks = [module for module in backbone.modules() if isinstance(module, BLOCKS)]
    assert compiled == blocks and len(blocks) >= 2
    assert list(backbone.state_dict()) == names


@pytest.mark.slow  # a minute of the C++ compiler
@pytest.mark.filterwarnings("ignore")  # those of torch.compile itself
def test_a_compiled_network_computes_the_same() -> None:
    images = torch.randn(2, 3, 32, 32)
    plain, compiled = network("vit_pico_patch4_32"), network("vit_pico_patch4_32")
    compile_blocks(compiled)
    torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-5)
