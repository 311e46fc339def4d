"""fairseq files: weights come out, nothing that is in them runs, damage is told."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isogloss.core.errors import CheckpointError
from isogloss.encoders.wave import WaveConfig, WaveEncoder
from isogloss.hub.load import load_model
from isogloss.hub.unpickle import Inert, StoredTensor, read_torch_file

WAVEFORM = torch.randn(3000, generator=torch.Generator().manual_seed(0))
SIZES: dict[str, Any] = {
    "conv_channels": (8,) * 7,
    "width": 16,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_width": 24,
    "position_kernel": 8,
    "position_groups": 2,
}
LAYER: dict[str, Any] = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}
ARGS: dict[str, Any] = {
    "encoder_attention_heads": 4,
    "layer_norm_first": False,
    "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] + [(8,2,2)]",
    "dropout": 0.25,
    "encoder_layerdrop": 0.125,
    "normalize": False,
}


def encoder(**changes: Any) -> WaveEncoder:
    torch.manual_seed(0)
    model = WaveEncoder(WaveConfig.model_validate(SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def fairseq_names(model: WaveEncoder) -> OrderedDict[str, Tensor]:
    """The same tensors as fairseq would have named and shaped them, written out by hand."""
    norm = "2" if model.config.conv_norm == "group" else "2.1"
    replacements = [
        (r"^mask_embedding_D$", "mask_emb"),
        (r"^convolutions\.convs\.(\d)\.", r"feature_extractor.conv_layers.\1.0."),
        (r"^convolutions\.norms\.(\d)\.", rf"feature_extractor.conv_layers.\1.{norm}."),
        (r"^latent_norm\.", "layer_norm."),
        (r"^projection\.", "post_extract_proj."),
        (r"^position\.bias", "encoder.pos_conv.0.bias"),
        (r"^position\.gain_K", "encoder.pos_conv.0.weight_g"),
        (r"^position\.direction", "encoder.pos_conv.0.weight_v"),
        (r"^norm\.", "encoder.layer_norm."),
        (r"^layers\.", "encoder.layers."),
        (r"attention\.out\.", "self_attn.out_proj."),
        (r"attention_norm", "self_attn_layer_norm"),
        (r"ffn\.up", "fc1"),
        (r"ffn\.down", "fc2"),
        (r"ffn_norm", "final_layer_norm"),
    ]
    result: OrderedDict[str, Tensor] = OrderedDict()
    for own, tensor in model.state_dict().items():
        name = own
        for pattern, replacement in replacements:
            name = re.sub(pattern, replacement, name)
        if own.startswith("convolutions.convs.") and own.endswith("weight"):
            tensor = tensor.permute(0, 2, 1).contiguous()
        if own == "position.gain_K":
            tensor = tensor.view(1, 1, -1)
        if "attention.qkv" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                result[name.replace("attention.qkv", f"self_attn.{part}_proj")] = piece.clone()
        else:
            result[name] = tensor
    return result


def assert_same(path: Path, model: WaveEncoder) -> None:
    loaded = load_model(path)
    with torch.no_grad():
        for ours, theirs in zip(loaded.encoder([WAVEFORM]).states, model([WAVEFORM]).states, strict=True):
            torch.testing.assert_close(ours.values_ND, theirs.values_ND, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pretrained_file(zipped: bool, tmp_path: Path) -> None:
    model = encoder()
    heads = {
        "quantizer.vars": torch.randn(1, 10, 4),
        "quantizer.weight_proj.weight": torch.randn(10, 8),
        "project_q.bias": torch.randn(6),
        "final_proj.weight": torch.randn(6, 16),
    }
    content = {"args": argparse.Namespace(**ARGS), "model": fairseq_names(model) | heads, "optimizer_history": [Path()]}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / "model.pt", model)
    loaded = load_model(tmp_path / "model.pt")
    assert loaded.report.format == "fairseq"
    config = loaded.encoder.config
    assert isinstance(config, WaveConfig)
    assert (config.dropout, config.layerdrop, config.normalize_waveform) == (0.25, 0.125, False)
    torch.testing.assert_close(loaded.head_tensors["quantizer.codebook"], heads["quantizer.vars"])
    assert set(loaded.head_tensors) == {
        "quantizer.codebook",
        "quantizer.logits.weight",
        "project_targets.bias",
        "project_context.weight",
    }


def test_a_fine_tuned_file_with_an_omegaconf_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(**LAYER)
    module = types.ModuleType("omegaconf_for_this_test")

    class DictConfig:
        def __init__(self, content: Any) -> None:
            self._content, self._parent = content, self

    class AnyNode:
        def __init__(self, value: Any) -> None:
            self._val = value

    for made in (DictConfig, AnyNode):
        made.__module__, made.__qualname__ = module.__name__, made.__name__
        setattr(module, made.__name__, made)
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def node(tree: Any) -> Any:
        return (
            DictConfig({key: node(value) for key, value in tree.items()}) if isinstance(tree, dict) else AnyNode(tree)
        )

    settings = ARGS | {"layer_norm_first": True, "normalize": True}
    cfg = node({"model": {"w2v_args": {"model": settings}, "dropout": 0.0}, "task": {"normalize": True}})
    tensors = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in fairseq_names(model).items()}
    tensors["w2v_encoder.proj.weight"] = torch.randn(5, 16)
    torch.save({"args": None, "cfg": cfg, "model": tensors}, tmp_path / "model.pt")
    monkeypatch.delitem(sys.modules, module.__name__)
    assert_same(tmp_path / "model.pt", model)
    loaded = load_model(tmp_path / "model.pt")
    assert loaded.encoder.normalizes_waveform
    assert set(loaded.head_tensors) == {"lm_head.weight"}


def test_no_projection_where_the_widths_agree(tmp_path: Path) -> None:
    model = encoder(width=8)
    with torch.no_grad():
        model.projection.weight.copy_(torch.eye(8))
        model.projection.bias.zero_()
    tensors = {name: t for name, t in fairseq_names(model).items() if not name.startswith("post_extract_proj")}
    torch.save({"args": argparse.Namespace(**ARGS), "model": tensors}, tmp_path / "model.pt")
    assert_same(tmp_path / "model.pt", model)


class Shell:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


class Evaluate:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.canary)!r}, 'w')",)


class Inside:
    """A call whose result is then changed and filled, so that every way of touching an object is tried."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        items = [Shell(self.canary)]
        return list, (), {"state": Shell(self.canary)}, iter(items), iter([("key", Evaluate(self.canary))])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("malice", [Shell, Evaluate, Inside])
def test_a_malicious_twin_is_inert(malice: type, zipped: bool, tmp_path: Path) -> None:
    model = encoder()
    canary = tmp_path / "canary"
    content = {"args": argparse.Namespace(**ARGS), "trap": malice(canary), "model": fairseq_names(model)}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / "model.pt", model)
    assert not canary.exists()
    trap = read_torch_file(tmp_path / "model.pt")["trap"]
    assert isinstance(trap, Inert)


def test_a_trap_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    tensors: dict[str, Any] = dict(fairseq_names(encoder()))
    canary = tmp_path / "canary"
    tensors["layer_norm.weight"] = Shell(canary)
    torch.save({"args": argparse.Namespace(**ARGS), "model": tensors}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"latent_norm\.weight is missing"):
        load_model(tmp_path / "model.pt")
    assert not canary.exists()


def test_nothing_of_ours_can_be_changed_by_a_file(tmp_path: Path) -> None:
    # BUILD with a slot state sets attributes on whatever was made before: here a tensor, a storage's type, a container.
    program = (
        b"\x80\x02ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01s\x86b"  # on the maker itself
        b")RN}X\x05\x00\x00\x00itemsK\x01s\x86b."  # on what it made
    )
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3")
    content = read_torch_file(tmp_path / "model.pt")
    assert dict(content.items()) == {}
    torch.save(OrderedDict(a=torch.ones(2)), tmp_path / "clean.pt")
    assert isinstance(read_torch_file(tmp_path / "clean.pt")["a"], StoredTensor)


def zip_with(path: Path, program: bytes, data: bytes = b"\0" * 16) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", data)


def tensor_program(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"model": {"a": Tensor()}})
    return buffer.getvalue()


def test_tensors_lie_inside_their_storage(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    zip_with(path, tensor_program((2, 2), (2, 1)))
    assert read_torch_file(path)["model"]["a"].tensor().tolist() == [[0.0, 0.0], [0.0, 0.0]]
    for program in (
        tensor_program((2, 3), (3, 1)),
        tensor_program((2, 2), (4, 1)),
        tensor_program((2, 2), (2, 1), offset=2),
        tensor_program((2, 2), (2, 1), offset=-1),
        tensor_program((10**12,), (0,)),
        tensor_program((-1,), (1,)),
    ):
        zip_with(path, program)
        with pytest.raises(CheckpointError, match="storage"):
            read_torch_file(path)["model"]["a"].tensor()
    zip_with(path, tensor_program((2, 2), (2, 1), count=10**12))
    with pytest.raises(CheckpointError, match="shorter"):
        read_torch_file(path)


def test_damaged_files_are_told_in_one_kind_of_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    content = {"args": argparse.Namespace(**ARGS), "model": fairseq_names(encoder())}
    generator = torch.Generator().manual_seed(0)
    for zipped in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for place in torch.randint(0, min(len(whole), 4000), (6,), generator=generator).tolist():
                damaged[place] = int(torch.randint(0, 256, (), generator=generator))
            path.write_bytes(bytes(damaged))
            # A flipped bit in a value cannot be seen here; anything else must be a CheckpointError.
            with contextlib.suppress(CheckpointError):
                load_model(path)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError):
            load_model(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"weights": 1}, {"model": {"a": torch.zeros(2)}}])
def test_other_torch_files_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "model.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + b"\0" * 10_000)
    with pytest.raises(CheckpointError, match="compressed"):
        load_model(tmp_path / "model.pt")
