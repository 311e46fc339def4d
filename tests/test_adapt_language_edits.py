"""Edits per language: neutral at the start, exact where they act, saved with the model, still where they are not used."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import (
    MARK,
    AdaptersConfig,
    EditsConfig,
    GatesConfig,
    LoraConfig,
    MasksConfig,
    OneHotConfig,
    costs,
    edits_of,
    install,
    matrices,
    remove,
    row_of,
    select,
    split_rows,
    with_languages,
    write_rows,
)
from isogloss.encoders.presets import build_encoder, preset
from isogloss.hub.load import load_encoder
from isogloss.hub.save import save_model
from isogloss.nn.edits import WeightMask, pack_bits, unpack_bits

ALL: list[Callable[..., EditsConfig]] = [MasksConfig, OneHotConfig, AdaptersConfig, GatesConfig, LoraConfig]
LANGUAGES = ("mdw", "nst", "ckb")


def encoder_with(make: Callable[..., EditsConfig] | None, *, seed: int = 0, **changes: Any) -> Encoder:
    torch.manual_seed(seed)
    config = preset("wave-tiny").model_copy(
        update={"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0, **changes}
    )
    encoder = build_encoder(config)
    if make is not None:
        install(encoder, make(languages=LANGUAGES))
    return encoder


def disturb(encoder: Encoder, seed: int = 5) -> None:
    """Give every edit other values than those it starts with."""
    random = torch.Generator().manual_seed(seed)
    for edit in edits_of(encoder).values():
        if isinstance(edit, WeightMask):
            for row in range(len(LANGUAGES)):
                edit.write(row, torch.rand(edit.shape, generator=random) > 0.4)
        else:
            for parameter in edit.parameters():
                parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=random))


def waveforms() -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=random) for n in (9000, 5000)]


def state(encoder: Encoder) -> Tensor:
    with torch.no_grad():
        return encoder.eval()(waveforms()).last.values_ND


@pytest.mark.parametrize("shape", [(3, 8), (5, 7), (1, 1), (64, 33)])
def test_bits_come_back(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8
    assert len(bits) == -(-mask.numel() // 8)
    assert torch.equal(unpack_bits(bits, shape), mask)
    assert bits[0] & 1 == mask.flatten()[0]


@pytest.mark.parametrize("make", ALL)
def test_edits_change_nothing_at_the_start_nor_without_a_language(make: Callable[..., EditsConfig]) -> None:
    dense = state(encoder_with(None))
    encoder = encoder_with(make)
    select(encoder, 1)
    assert torch.equal(state(encoder), dense)  # with masks: ρ = 0 is the dense model, bit for bit
    disturb(encoder)
    assert not torch.allclose(state(encoder), dense, atol=1e-3)
    select(encoder, None)
    assert torch.equal(state(encoder), dense)
    remove(encoder)
    assert torch.equal(state(encoder), dense)
    assert not any(MARK in name for name in encoder.state_dict())


@pytest.mark.parametrize("make", ALL)
def test_an_encoder_fixed_to_a_language_is_what_training_computes(make: Callable[..., EditsConfig]) -> None:
    encoder = encoder_with(make)
    disturb(encoder)
    outputs = []
    for row, language in enumerate(LANGUAGES):
        select(encoder, row)
        outputs.append(state(encoder))
        select(encoder, None)
        fixed = encoder.for_language(language)
        torch.testing.assert_close(state(fixed), outputs[-1], rtol=0, atol=0)
        assert fixed.convolutions.convs[0].weight is encoder.convolutions.convs[0].weight  # type: ignore[attr-defined]
    for a, b in itertools.combinations(outputs, 2):
        assert not torch.allclose(a, b, atol=1e-3)
    with pytest.raises(ConfigError, match="not adapted to the language `mdv`, but to mdw, nst, ckb"):
        encoder.for_language("mdv")
    with pytest.raises(ConfigError, match="already"):
        install(encoder, MasksConfig(languages=("fr",)))


def test_a_language_is_found_in_every_spelling_and_region() -> None:
    encoder = build_encoder(preset("wave-tiny"))
    install(encoder, GatesConfig(languages=("es", "cs", "pt-BR", "nst-tusom", "pt")))
    spelled = {"CS": 1, "ces": 1, "cs-CZ": 1, "cs_CZ.UTF-8": 1, "Czech": 1, "por_BR": 2, "pt-PT": 4, "spa-419": 0}
    assert {tag: row_of(encoder, tag) for tag in spelled} == spelled
    for other in ("nst", "pt-Cyrl", "wen"):
        with pytest.raises(ConfigError, match=f"not adapted to the language `{other}`, but to es, cs"):
            row_of(encoder, other)
    with pytest.raises(ConfigError, match="do not say their language.*gates.*`--language`"):
        row_of(encoder, None)
    with pytest.raises(ConfigError, match="belongs to another model"):
        write_rows(encoder, {key.replace("cs/", "cs-CZ/"): value for key, value in split_rows(encoder).items()})


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("preset_changes", [{}, {"norm_first": True, "conv_norm": "layer", "conv_bias": True}])
def test_masked_gradients_are_exactly_zero_and_the_others_those_of_a_pruned_model(
    checkpointed: bool, preset_changes: dict[str, Any]
) -> None:
    changes = {**preset_changes, "checkpoint_activations": checkpointed}
    encoder = encoder_with(MasksConfig, **changes)
    disturb(encoder)
    pruned = encoder_with(None, **preset_changes)
    for name, matrix in matrices(encoder).items():
        assert isinstance(matrix.edit, WeightMask)
        matrices(pruned)[name].weight.data.mul_(matrix.edit.mask(2))
    select(encoder, 2)
    for model in (encoder.train(), pruned.train()):
        values_ND = model(waveforms()).last.values_ND
        (values_ND * torch.linspace(-1, 1, values_ND.shape[1])).sum().backward()
    for name, matrix in matrices(encoder).items():
        assert isinstance(matrix.edit, WeightMask)
        mask, gradient = matrix.edit.mask(2), matrix.weight.grad
        assert gradient is not None
        assert torch.count_nonzero(gradient[~mask]) == 0
        assert torch.count_nonzero(gradient[mask]) > 0.9 * mask.sum()
        expected = matrices(pruned)[name].weight.grad
        assert expected is not None
        torch.testing.assert_close(gradient[mask], expected[mask])


WITH_BLOCKS = (
    "wave-tiny",
    "wavlm-tiny",
    "data2vec2-tiny",
    "spidr-tiny",
    "mel-tiny",
    "conformer-tiny",
    "wave-conformer-tiny",
)


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_every_kind_of_encoder_multiplies_by_the_edited_weight(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(preset(name)).eval()
    plain = encoder(waveforms()).last.values_ND
    install(encoder, MasksConfig(languages=LANGUAGES))
    disturb(encoder)
    select(encoder, 0)
    masked = encoder(waveforms()).last.values_ND
    assert not torch.allclose(masked, plain, atol=1e-3)
    (masked * torch.linspace(-1, 1, masked.shape[1])).sum().backward()
    for matrix_name, matrix in matrices(encoder).items():
        assert isinstance(matrix.edit, WeightMask)
        gradient = matrix.weight.grad
        assert gradient is not None, matrix_name
        assert torch.count_nonzero(gradient[~matrix.edit.mask(0)]) == 0, matrix_name
    with torch.no_grad():
        torch.testing.assert_close(encoder.for_language("mdw")(waveforms()).last.values_ND, masked.detach())


@pytest.mark.parametrize("make", [AdaptersConfig, GatesConfig, OneHotConfig, LoraConfig])
@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_every_kind_of_encoder_takes_every_edit(name: str, make: Callable[..., EditsConfig]) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(preset(name)).eval()
    plain = state(encoder)
    install(encoder, make(languages=LANGUAGES))
    select(encoder, 0)
    assert torch.equal(state(encoder), plain)
    disturb(encoder)
    assert not torch.allclose(state(encoder), plain, atol=1e-3)


def test_an_infinite_gradient_stays_out_of_masked_weights() -> None:
    edit = WeightMask(1, (2, 4))
    edit.write(0, torch.tensor([[True] * 4, [False] * 4]))
    edit.select(0)
    weight = torch.ones(2, 4, requires_grad=True)
    (edit(weight) * torch.inf).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad[1], torch.zeros(4))


@pytest.mark.parametrize("make", ALL)
def test_every_parameter_gets_a_gradient_whatever_the_language(make: Callable[..., EditsConfig]) -> None:
    encoder = encoder_with(make).train()
    disturb(encoder)
    select(encoder, 1)
    encoder(waveforms()).last.values_ND.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name  # as processes of a group expect
        if MARK in name:
            assert torch.count_nonzero(parameter.grad[[0, 2]]) == 0, name
            assert torch.count_nonzero(parameter.grad[1]) > 0, name


@pytest.mark.parametrize("make", ALL)
def test_edits_are_saved_beside_the_dense_model(make: Callable[..., EditsConfig], tmp_path: Path) -> None:
    encoder = encoder_with(make)
    disturb(encoder)
    save_model(tmp_path / "model", encoder, None, {})
    assert encoder.edits is not None
    file = tmp_path / "model" / f"{encoder.edits.kind}.safetensors"
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"isogloss.json", "model.safetensors", file.name}
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as dense:
        assert not any(MARK in name for name in dense.keys())  # noqa: SIM118 - not a mapping
    loaded = load_encoder(tmp_path / "model")
    assert loaded.edits == encoder.edits
    for language in LANGUAGES:
        assert torch.equal(state(loaded.for_language(language)), state(encoder.for_language(language)))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        load_encoder(tmp_path / "model")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"safetensors: absent"):
        load_encoder(tmp_path / "model")


def test_a_sub_network_that_was_fixed_is_a_plain_model(tmp_path: Path) -> None:
    encoder = encoder_with(MasksConfig)
    disturb(encoder)
    save_model(tmp_path / "model", encoder.for_language("nst"), None, {})
    assert not (tmp_path / "model" / "masks.safetensors").exists()
    assert torch.equal(state(load_encoder(tmp_path / "model")), state(encoder.for_language("nst")))


@pytest.mark.parametrize("make", ALL)
def test_a_language_is_added_without_touching_the_others(make: Callable[..., EditsConfig]) -> None:
    encoder = encoder_with(make)
    disturb(encoder)
    before, outputs = split_rows(encoder), {name: state(encoder.for_language(name)) for name in LANGUAGES}
    before = {name: row.clone() for name, row in before.items()}
    with_languages(encoder, ["fr"])
    after = split_rows(encoder)
    assert all(torch.equal(after[name], row) for name, row in before.items())
    assert len(after) == len(before) * 4 // 3
    for name in LANGUAGES:
        assert torch.equal(state(encoder.for_language(name)), outputs[name])
    select(encoder, None)
    assert torch.equal(state(encoder.for_language("fr")), state(encoder))


def test_an_added_language_must_be_new() -> None:
    encoder = encoder_with(GatesConfig)
    for added in (["fr", "nst"], ["fr", "fr"]):
        with pytest.raises(ConfigError, match=rf"must be new to the encoder and different, but {added[1]} is not"):
            with_languages(encoder, added)
    assert encoder.edits is not None
    assert encoder.edits.languages == LANGUAGES


def test_costs_are_counted() -> None:
    encoder = encoder_with(MasksConfig)
    size = sum(p.numel() for p in encoder.parameters())
    prunable = sum(matrix.weight.numel() for matrix in matrices(encoder).values())
    assert prunable == 2 * (4 * 64 * 64 + 2 * 64 * 128)
    for matrix in matrices(encoder).values():
        assert isinstance(matrix.edit, WeightMask)
        mask = torch.ones(matrix.edit.shape, dtype=torch.bool)
        mask.view(-1)[: mask.numel() // 4] = False
        matrix.edit.write(1, mask)
    assert costs(encoder)["mdw"].active == size
    assert costs(encoder)["nst"].active == size - prunable // 4
    assert costs(encoder)["nst"].stored_bytes == prunable // 8
    adapters = encoder_with(lambda languages: AdaptersConfig(languages=languages, bottleneck=16))
    per_language = 4 * (64 * 16 * 2 + 16 + 64)
    assert costs(adapters)["ckb"].active == size + per_language
    assert costs(adapters)["ckb"].stored_bytes == 4 * per_language


def test_the_published_size_of_a_mask() -> None:
    with torch.device("meta"):
        encoder = build_encoder(preset("xls-r-300m"))
        install(encoder, MasksConfig(languages=("mdw",)))
    assert sum(matrix.weight.numel() for matrix in matrices(encoder).values()) == 301_989_888
    assert sum(row.nbytes for row in split_rows(encoder).values()) == 37_748_736  # 37.7 MB
    remove(encoder)
    with torch.device("meta"):
        install(encoder, AdaptersConfig(languages=("mdw",), bottleneck=256))
    # two per layer: 24 · 2 · (2 · 1024 · 256 + 256 + 1024)
    assert sum(row.numel() for row in split_rows(encoder).values()) == 25_227_264


def test_an_encoder_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no blocks"):
        install(build_encoder(preset("cpc-tiny")), MasksConfig(languages=("fr",)))
