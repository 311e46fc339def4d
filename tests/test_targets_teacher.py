"""The teacher's average against its closed form, online codebooks and layer targets against slow oracles, exact masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from isogloss.core.rng import utterance_generators
from isogloss.core.types import Packed
from isogloss.corruption.exact import mask_exactly
from isogloss.encoders.base import recorded
from isogloss.encoders.wave import WaveEncoder
from isogloss.losses.regression import regression, regression_metrics
from isogloss.nn.conv_decoder import ConvDecoder, fill_in, seeded_noise
from isogloss.targets.layer_outputs import instance_norm
from isogloss.targets.online_codebook import OnlineCodebook
from isogloss.targets.teacher import EmaTeacher, linear_decay
from objective_cases import WAVE


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.averaged = nn.Linear(3, 4)
        self.copied = nn.BatchNorm1d(4)


def test_after_n_steps_the_average_is_its_closed_form() -> None:
    torch.manual_seed(0)
    student = Student()
    teacher = EmaTeacher(student, lambda name: name.startswith("averaged"))
    decays = [linear_decay(step / 10, 0.5, 0.9, 0.6) for step in range(10)]
    assert decays[:8] == pytest.approx([0.5 + 0.4 * min(k / 6, 1) for k in range(8)])
    history = [student.averaged.weight.detach().double().clone()]
    for decay in decays:
        with torch.no_grad():
            student.averaged.weight += torch.randn(4, 3)
            student.copied.weight += 1.0
            student.copied.running_mean += 2.0
            student.copied.num_batches_tracked += 1
        history.append(student.averaged.weight.detach().double().clone())
        teacher.follow(student, decay)
    # θ'_n = Π τ · θ_0 + Σ_k (1−τ_k) Π_{j>k} τ_j · θ_k
    expected = history[0] * math.prod(decays)
    for k, decay in enumerate(decays):
        expected += (1 - decay) * math.prod(decays[k + 1 :]) * history[k + 1]
    torch.testing.assert_close(teacher.model.averaged.weight.double(), expected, rtol=1e-6, atol=1e-6)
    for name in ("weight", "running_mean", "num_batches_tracked"):
        assert torch.equal(teacher.model.copied.state_dict()[name], student.copied.state_dict()[name]), name
    assert teacher.averaged == {"averaged.weight", "averaged.bias"}


def test_statistics_of_batch_norms_are_copied_even_where_all_is_averaged() -> None:
    student = Student()
    teacher = EmaTeacher(student, lambda name: True)
    with torch.no_grad():
        student.copied.weight += 1.0
        student.copied.running_var += 2.0
        student.copied.num_batches_tracked += 1
    teacher.follow(student, 0.75)
    assert torch.equal(teacher.model.copied.running_var, torch.full((4,), 3.0))
    assert int(teacher.model.copied.num_batches_tracked) == 1
    assert torch.equal(teacher.model.copied.weight, torch.full((4,), 1.25))


def test_small_steps_are_not_lost_though_the_student_is_in_half_precision() -> None:
    student = nn.Linear(2, 2).to(torch.bfloat16)
    nn.init.ones_(student.weight)
    teacher = EmaTeacher(student, lambda name: True)
    nn.init.constant_(student.weight, 2.0)
    for _ in range(100):
        teacher.follow(student, 0.9999)
    assert teacher.model.weight.dtype == torch.float32
    torch.testing.assert_close(teacher.model.weight, torch.full((2, 2), 2 - 0.9999**100), rtol=1e-5, atol=0)


def test_a_teacher_has_no_parameters_no_gradient_and_no_training_mode() -> None:
    encoder = WaveEncoder(WAVE.model_copy(update={"dropout": 0.5, "layerdrop": 0.5}))
    teacher = EmaTeacher(encoder, lambda name: True)
    holder = nn.ModuleList([teacher]).train()
    assert not list(holder.parameters())
    assert not any(part.training for part in teacher.model.modules())
    assert {f"0.model.{name}" for name in encoder.state_dict()} == set(holder.state_dict())
    audio = [torch.randn(4000)]
    state = teacher.model(audio).last.values_ND
    assert not state.requires_grad
    torch.testing.assert_close(state, encoder.eval()(audio).last.values_ND)
    holder.load_state_dict(holder.state_dict())


def test_another_start_changes_what_is_averaged_only_and_holding_sets_the_student_back() -> None:
    torch.manual_seed(0)
    student, start = Student(), Student()
    teacher = EmaTeacher(student, lambda name: name.startswith("averaged"), start)
    assert torch.equal(teacher.model.averaged.weight, start.averaged.weight)
    assert torch.equal(teacher.model.copied.weight, student.copied.weight)
    nn.init.zeros_(student.averaged.bias)
    nn.init.zeros_(student.averaged.weight)
    teacher.hold(student, ["averaged.weight"])
    assert torch.equal(student.averaged.weight, start.averaged.weight)
    assert not student.averaged.bias.any()


def test_feed_forwards_are_recorded_before_the_residual() -> None:
    encoder = WaveEncoder(WAVE).eval()
    latents = encoder.frontend(Packed.from_list([torch.randn(4000), torch.randn(2000)])).latents
    with recorded(encoder.feed_forwards()) as outputs:
        states = encoder.context(latents).states
    assert len(outputs) == 2
    sizes = latents.sizes
    for layer, output, before, after in zip(encoder.layers, outputs, states[:-1], states[1:], strict=True):
        middle = layer.attention_norm(before.values_ND + layer.attention(before.values_ND, sizes))
        torch.testing.assert_close(layer.ffn_norm(middle + output), after.values_ND)
    encoder.context(latents)
    assert len(outputs) == 2  # nothing is kept once the context is left


def test_instance_norm_equals_torchs_on_each_utterance() -> None:
    torch.manual_seed(0)
    frames = Packed.from_list([3 + 2 * torch.randn(n, 5) for n in (7, 30, 2)])
    for mine, part in zip(instance_norm(frames).split(frames.sizes), frames.split(), strict=True):
        theirs = nn.functional.instance_norm(part.t().unsqueeze(0)).squeeze(0).t()
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert not instance_norm(Packed.from_list([torch.randn(1, 5)])).any()


def test_regression_is_the_formula_and_its_metrics_are_ratios() -> None:
    torch.manual_seed(0)
    guesses, targets = torch.randn(20, 16), torch.randn(20, 16)
    expected = sum(float((g - y).square().sum()) / 4.0 for g, y in zip(guesses, targets, strict=True))
    assert float(regression(guesses, targets)) == pytest.approx(expected, rel=1e-5)
    error = (guesses - targets).abs()
    smooth = torch.where(error < 0.5, error**2, error - 0.25).sum() / 4.0
    assert float(regression(guesses, targets, 0.5)) == pytest.approx(float(smooth), rel=1e-5)
    metrics = {
        name: float(total) / float(count) for name, (total, count) in regression_metrics(guesses, targets).items()
    }
    # FVU = loss / (√D · variance)
    assert metrics["fvu"] == pytest.approx(expected / 20 / (4.0 * float(targets.square().mean())), rel=1e-5)
    assert metrics["target_std"] == pytest.approx(float(targets.std(0).mean()), rel=1e-5)
    assert metrics["prediction_std"] == pytest.approx(float(guesses.std(0).mean()), rel=1e-5)


def test_codes_follow_their_frames_as_the_formula_says_however_an_update_is_divided() -> None:
    torch.manual_seed(0)
    whole = OnlineCodebook(2, 5, 3, decay=0.9, start_std=1.0)
    torch.manual_seed(0)
    divided = OnlineCodebook(2, 5, 3, decay=0.9, start_std=1.0)
    sums, counts = whole.sums_GCD.double().clone(), torch.ones(2, 5, dtype=torch.float64)
    for _ in range(4):
        frames = torch.randn(2, 11, 3)
        codes = whole.assign(frames)
        for g in range(2):  # by hand
            entries = sums[g] / counts[g][:, None]
            for m in range(11):
                assert int(codes[g, m]) == int((entries - frames[g, m].double()).square().sum(1).argmin())
            for v in range(5):
                mine = frames[g][codes[g] == v].double()
                if len(mine):
                    sums[g, v] = 0.9 * sums[g, v] + 0.1 * mine.sum(0)
                    counts[g, v] = 0.9 * counts[g, v] + 0.1 * len(mine)
        whole.collect(frames, codes)
        whole.step()
        for part in (slice(0, 4), slice(4, 11)):
            divided.collect(frames[:, part], divided.assign(frames[:, part]))
        divided.step()
    torch.testing.assert_close(whole.sums_GCD.double(), sums, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole.codes_GCD, divided.codes_GCD)
    before = whole.codes_GCD.clone()
    whole.collect(torch.full((2, 3, 3), torch.nan), torch.zeros(2, 3, dtype=torch.int64))
    whole.step()
    assert torch.equal(whole.codes_GCD, before), "frames that are not finite are left out"
    assert set(whole.state_dict()) == {"sums_GCD", "counts_GC"}


def test_exact_masks_hide_exactly_their_share_in_spans() -> None:
    lengths, seeds = [200, 57, 1, 0, 7], torch.arange(5)
    masks = mask_exactly(lengths, utterance_generators(seeds, "m"), num_masks=6, share=0.5, span=5, adjust=0.05)
    assert masks.shape == (6, sum(lengths))
    for mask in masks:
        assert [int(part.sum()) for part in mask.split(lengths)] == [100, 28, 0, 0, 3]
    assert len({tuple(mask.tolist()) for mask in masks}) == 6
    alone = mask_exactly([57], utterance_generators(seeds[1:2], "m"), num_masks=6, share=0.5, span=5, adjust=0.05)
    assert torch.equal(alone, masks[:, 200:257])
    changes = (masks[:, :199] != masks[:, 1:200]).float().mean()  # of single frames every second one would differ
    assert 0.1 < float(changes) < 0.35
    coverage = masks[:, :200].float().mean()
    assert float(coverage) == 0.5


def test_the_decoder_keeps_utterances_apart_and_fills_in() -> None:
    torch.manual_seed(0)
    decoder = ConvDecoder(12, 8, num_layers=3, kernel=3, groups=2, dropout=0.0)
    values = torch.randn(9, 12)
    together = decoder(values, [5, 4])
    torch.testing.assert_close(together[:5], decoder(values[:5], [5]))
    hidden = values[:5]
    for depth, convolution in enumerate(decoder.convolutions):
        out = nn.functional.conv1d(hidden.t()[None], convolution.weight, convolution.bias, padding=1, groups=2)[0].t()
        out = nn.functional.gelu(nn.functional.layer_norm(out, (8,)))
        hidden = out if depth == 0 else hidden + out
    torch.testing.assert_close(together[:5], decoder.project(hidden))
    is_masked = torch.tensor([True, False, True, False, False])
    filled = fill_in(torch.ones(3, 2), is_masked, torch.full((5, 2), 0.5))
    assert filled[:, 0].tolist() == [0.5, 1.0, 0.5, 1.0, 1.0]
    generators = utterance_generators(torch.tensor([1, 2]), "noise")
    noise = seeded_noise([300, 200], 4, 6, 0.01, generators, torch.device("cpu"))
    assert noise.shape == (2000, 6)
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)
