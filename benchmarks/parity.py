"""How equal is equal: the largest relative differences of each promise about encoders and checkpoints, on random weights.

    python benchmarks/parity.py --output benchmarks/results/parity.md

Differences are ‖a − b‖/‖b‖ over the frames of an utterance, the largest over states and utterances. "BASE" rows use
published sizes, "published widths" all but the number of layers; the others are narrow, so that many cases take minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from isogloss.core.types import Packed
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import build_encoder, preset
from isogloss.encoders.wave import WaveConfig
from isogloss.hub.export import export_hf
from isogloss.hub.load import load_encoder

Model = TypeVar("Model", bound=torch.nn.Module)
NARROW = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_dim": [32] * 7,
    "num_conv_pos_embedding_groups": 4,
}
CLASSES = ["Wav2Vec2Model", "HubertModel", "UniSpeechModel", "UniSpeechSatModel"]
WAVLM = NARROW | {"num_buckets": 32, "max_bucket_distance": 60}
SPEECH_T5 = {
    "hidden_size": 48,
    "encoder_layers": 4,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "conv_dim": [32] * 7,
    "num_conv_pos_embedding_groups": 4,
    "decoder_layers": 1,
    "vocab_size": 9,
}
SPEECH_T5_ENCODER = "SpeechT5EncoderWithSpeechPrenet"
CONFORMER = NARROW | {"conv_depthwise_kernel_size": 15, "hidden_act": "swish"}
BERT = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "conv_depthwise_kernel_size": 15,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "swish",
}
WAV2VEC2_BERT = "Wav2Vec2BertModel"
EXTRACTOR = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "num_mel_bins": 80, "stride": 2}
# Gates, biases and tables of relative positions: what a model starts with is near nothing, and would hide a mix-up.
POSITIONS = re.compile(
    "rel_pos|rel_attn|pe_k|^relative|attention.relative|pos_bias|distance_embedding|content_bias|distance_bias|distance_keys"
)
NORMS = {
    "group norm, post-LN": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "layer norm, pre-LN": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=5, help="random batches for each invariance row")
    parser.add_argument("--quick", action="store_true", help="leave out the rows of published size")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    rows: list[tuple[str, str, float]] = []

    def add(check: str, model: str, value: float) -> None:
        rows.append((check, model, value))
        print(f"{check} | {model} | {value:.1e}", flush=True)

    for norm, settings in NORMS.items():
        for name in CLASSES:
            for label, value in hugging_face(name, NARROW | settings).items():
                add(label, f"{name}, {norm}", value)
        if not args.quick:
            for label, value in hugging_face("Wav2Vec2Model", settings).items():
                add(label, f"Wav2Vec2Model BASE, {norm}", value)
    others: list[tuple[str, str, dict[str, object]]] = [
        ("WavLMModel", "group norm, post-LN", WAVLM | NORMS["group norm, post-LN"]),
        ("WavLMModel", "layer norm, pre-LN", WAVLM | NORMS["layer norm, pre-LN"]),
        ("Data2VecAudioModel", "layer norm, post-LN", NARROW),
        (SPEECH_T5_ENCODER, "group norm, post-LN", SPEECH_T5),
        (SPEECH_T5_ENCODER, "layer norm, post-LN", SPEECH_T5 | {"feat_extract_norm": "layer", "conv_bias": True}),
    ]
    conformers: dict[str, dict[str, object]] = {
        "group norm, relative positions": {"position_embeddings_type": "relative"},
        "layer norm, rotary positions": NORMS["layer norm, pre-LN"] | {"position_embeddings_type": "rotary"},
        "group norm, no positions": {"position_embeddings_type": None},
    }
    others += [("Wav2Vec2ConformerModel", label, CONFORMER | settings) for label, settings in conformers.items()]
    others += [
        (WAV2VEC2_BERT, f"{positions} positions", BERT | {"position_embeddings_type": positions})
        for positions in ("relative_key", "relative", "rotary")
    ]
    if not args.quick:
        others += [(name, "BASE", {}) for name in ("WavLMModel", "Data2VecAudioModel", SPEECH_T5_ENCODER)]
        wave = LARGE | {"feat_extract_norm": "layer", "conv_bias": True}
        for positions in ("relative", "rotary"):
            label = f"LARGE, published widths, 2 of 24 layers, {positions} positions"
            others.append(("Wav2Vec2ConformerModel", label, wave | {"position_embeddings_type": positions}))
        others.append((WAV2VEC2_BERT, "2.0, published widths, 2 of 24 layers", {"num_hidden_layers": 2}))
    for name, label, settings in others:
        for check, value in hugging_face(name, settings).items():
            add(check, f"{name}, {label}", value)
    encoders: dict[str, Callable[[], Encoder]] = {
        "wave, gated positions": lambda: build_encoder(preset("wavlm-tiny")),
        "wave, stacked positions": lambda: build_encoder(_changed(position="conv_stack", position_layers=5)),
        "wave, clipped positions": lambda: build_encoder(
            _changed(position="conv_sinusoid", relative={"kind": "clipped"})
        ),
        "wave, group norm": lambda: build_encoder(preset("wave-tiny")),
        "wave, layer norm": lambda: build_encoder(_layer(preset("wave-tiny"))),
        "conformer, batch norm, relative positions": lambda: build_encoder(_conformer(conv_norm="batch")),
        "conformer, rotary positions": lambda: build_encoder(_conformer(positions="rotary")),
        "conformer, w2v-BERT 2.0's blocks": lambda: build_encoder(
            preset("w2v-bert-2.0").model_copy(update={"width": 80, "num_layers": 2, "num_heads": 4, "ffn_width": 160})
        ),
        "wave conformer, batch norm": lambda: build_encoder(
            preset("wave-conformer-tiny").model_copy(update={"conv_norm": "batch"})
        ),
        "modified CPC": lambda: build_encoder(preset("modified-cpc")),
        "CPC": lambda: build_encoder(preset("cpc")),
    }
    if not args.quick:
        encoders |= {
            "wav2vec2-base": lambda: build_encoder(preset("wav2vec2-base")),
            "wav2vec2-base sizes, layer norm": lambda: build_encoder(_layer(preset("wav2vec2-base"))),
        }
    for name, build in encoders.items():
        add("a batch against each utterance alone, 0.2 to 20 s", name, invariance(randomise(build()), args.batches))
    table = ["| what | model | largest relative difference |", "|---|---|---|"]
    table += [f"| {check} | {model} | {value:.1e} |" for check, model, value in rows]
    if args.output:
        args.output.write_text(
            "# Parity\n\n`python benchmarks/parity.py`, fp32 on a CPU, "
            f"torch {torch.__version__}, transformers {transformers.__version__}. "
            "Weights, norms, biases, gates, tables and the statistics of batch norms are random.\n\n"
            + "\n".join(table)
            + "\n",
            encoding="utf-8",
        )
    worst = max(value for check, _, value in rows if "alone" not in check)
    print(
        f"largest against Hugging Face {worst:.1e}; largest of batches {max(v for c, _, v in rows if 'alone' in c):.1e}"
    )


def _layer(config: object) -> WaveConfig:
    assert isinstance(config, WaveConfig)
    return config.model_copy(update={"conv_norm": "layer", "conv_bias": True, "norm_first": True})


def _changed(**changes: object) -> WaveConfig:
    config = preset("wave-tiny")
    # 19 taps, as data2vec has.
    return WaveConfig.model_validate(config.model_dump() | {"position_kernel": 19} | changes)


def _conformer(**changes: object) -> Any:
    return preset("conformer-tiny").model_copy(update=changes)


def find_class(name: str) -> Any:
    module = transformers.models.speecht5.modeling_speecht5 if name == SPEECH_T5_ENCODER else transformers
    return getattr(module, name)


def randomise(model: Model) -> Model:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.2 if parameter.dim() <= 1 else 0.2 * float(parameter.std())
            if POSITIONS.search(name):
                parameter.zero_()
                spread = 1.0
            parameter.add_(spread * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():  # stored statistics of batch norms
            if name.endswith("running_mean"):
                buffer.copy_(0.5 * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.copy_(0.2 + torch.rand_like(buffer))
    return model.eval()


def inputs_of(model: Any, waveform: Tensor) -> dict[str, Tensor]:
    """Return what a model of transformers reads, as its feature extractor makes it."""
    if type(model).__name__ != WAV2VEC2_BERT:
        return {"input_values": waveform[None]}
    extractor = transformers.SeamlessM4TFeatureExtractor()
    features = extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    return {name: torch.as_tensor(value) for name, value in features.items()}


@torch.no_grad()
def hugging_face(name: str, settings: dict[str, object]) -> dict[str, float]:
    model_class = find_class(name)
    model = randomise(model_class(model_class.config_class(**settings)))
    waveform = torch.randn(40_123) * 0.1 + 0.01
    inputs = inputs_of(model, waveform)
    out = model(**inputs, output_hidden_states=True)
    expected = [state[0] for state in (*out.hidden_states[:-1], out.last_hidden_state)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model.save_pretrained(place / "theirs")
        if name == WAV2VEC2_BERT:
            (place / "theirs" / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR), encoding="utf-8")
        ours = load_encoder(place / "theirs")
        result = {"every hidden state against transformers": worst(ours, waveform, expected)}
        frontend = ours.frontend(Packed.from_list([waveform]))
        is_masked_N = torch.arange(len(frontend.latents.values_ND)) % 5 < 2
        result["the last state with masked frames"] = relative(
            ours.context(frontend.latents, is_masked_N).last.values_ND, masked(model, inputs, is_masked_N)
        )
        tensors = load_file(place / "theirs" / "model.safetensors")
        older = {
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): tensor
            for name, tensor in tensors.items()
        }
        if older.keys() != tensors.keys():
            save_file(older, place / "theirs" / "model.safetensors")
            result["the same from the older names of weight norm"] = worst(
                load_encoder(place / "theirs"), waveform, expected
            )
        export_hf(ours, place / "exported")
        opener = model_class if name == SPEECH_T5_ENCODER else transformers.AutoModel
        again = opener.from_pretrained(place / "exported").eval()
        back = again(**inputs_of(again, waveform)).last_hidden_state[0]
        result["exported and opened by transformers"] = relative(back, expected[-1])
        result["exported and opened by isogloss"] = worst(load_encoder(place / "exported"), waveform, expected)
    return result


def masked(model: Any, inputs: dict[str, Tensor], is_masked_N: Tensor) -> Tensor:
    if type(model).__name__ == SPEECH_T5_ENCODER:
        hidden, _ = model.prenet(inputs["input_values"], mask_time_indices=is_masked_N[None])
        out = model.wrapped_encoder(hidden)
    else:
        # A feature extractor may pad by a frame, which nothing masks.
        frames = inputs["input_features"].shape[1] if "input_features" in inputs else len(is_masked_N)
        padded_S = torch.nn.functional.pad(is_masked_N, (0, frames - len(is_masked_N)))
        out = model(**inputs, mask_time_indices=padded_S[None])
    states: Tensor = out.last_hidden_state[0]
    return states


def worst(encoder: Encoder, waveform: Tensor, expected: list[Tensor]) -> float:
    states = encoder([waveform]).states
    return max(relative(state.values_ND, other) for state, other in zip(states, expected, strict=True))


def relative(a: Tensor, b: Tensor) -> float:
    """Compare the frames of both; a feature extractor of transformers may have padded by one."""
    assert abs(len(a) - len(b)) <= 1
    num_frames = min(len(a), len(b))
    return float((a[:num_frames] - b[:num_frames]).norm() / b[:num_frames].norm())


@torch.no_grad()
def invariance(encoder: Encoder, batches: int) -> float:
    largest = 0.0
    for _ in range(batches):
        # Half of the lengths are short: those are where borders matter.
        seconds = [0.2 * 100 ** float(torch.rand(())) for _ in range(5)]
        waveforms = [torch.randn(int(16_000 * s)) * 10 ** float(torch.randn(())) for s in seconds]
        together = [state.split() for state in encoder(waveforms).states]
        for index, waveform in enumerate(waveforms):
            for state, alone in zip(together, encoder([waveform]).states, strict=True):
                largest = max(largest, relative(state[index], alone.values_ND))
    return largest


if __name__ == "__main__":
    main()
