"""Training by language: nothing unused moves, all ones is the dense run, and the processes do not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from safetensors.torch import load_file
from torch import Tensor

import training_fakes as fakes
from isogloss.core.errors import ConfigError
from isogloss.core.types import Packed, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import AdaptersConfig, MasksConfig, install, matrices
from isogloss.encoders.presets import build_encoder, preset
from isogloss.nn.edits import WeightMask
from isogloss.training.by_language import follow_languages
from isogloss.training.optim import OptimConfig, build_optimizer
from isogloss.training.parallel import Learner

pytestmark = pytest.mark.timeout(240)
LANGUAGES = ("a", "b", "c")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write coloured noise in three languages."""
    folder, random, cuts = tmp_path_factory.mktemp("corpus"), np.random.default_rng(7), []
    for number in range(18):
        samples = np.cumsum(random.normal(size=int(random.uniform(0.3, 1.1) * 16_000)))
        samples = (samples - samples.mean()) / (4 * samples.std())
        path = folder / f"u{number:02d}.wav"
        soundfile.write(path, samples.clip(-1, 1), 16_000, subtype="PCM_16")
        recording = Recording.from_file(path)
        supervision = SupervisionSegment(
            f"s{number}", recording.id, 0, recording.duration, language=LANGUAGES[number % 3]
        )
        cuts.append(MonoCut(recording.id, 0, recording.duration, 0, recording=recording, supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder


def mask(encoder: Encoder, sparsity: float = 0.5, **changes: tuple[str, ...]) -> None:
    """Install masks at random; with `sparsity` 0 all ones."""
    install(encoder, MasksConfig(languages=LANGUAGES, **changes))
    random = torch.Generator().manual_seed(1)
    for matrix in matrices(encoder).values():
        assert isinstance(matrix.edit, WeightMask)
        for row in range(len(LANGUAGES)):
            matrix.edit.write(row, torch.rand(matrix.edit.shape, generator=random) >= sparsity)


class Masked(fakes.NextFrame):
    """The objective of the loop's tests, on sub-networks."""

    grouping = "language"

    def __init__(self, encoder: Encoder) -> None:
        mask(encoder)
        super().__init__(encoder)


class WithAdapters(fakes.NextFrame):
    """The same with adapters."""

    grouping = "language"

    def __init__(self, encoder: Encoder) -> None:
        install(encoder, AdaptersConfig(languages=LANGUAGES, bottleneck=4))
        super().__init__(encoder)


class AllOnes(fakes.NextFrame):
    """The same with masks that leave nothing out."""

    grouping = "language"

    def __init__(self, encoder: Encoder) -> None:
        mask(encoder, 0.0)
        super().__init__(encoder)


class Dense(fakes.NextFrame):
    """The same without edits."""

    grouping = "language"


def learner_of(**changes: tuple[str, ...]) -> tuple[Learner, torch.optim.Optimizer]:
    torch.manual_seed(0)
    encoder = build_encoder(preset("wave-tiny"))
    mask(encoder, **changes)
    learner = Learner(encoder, fakes.NextFrame(encoder))
    optimizer = build_optimizer(OptimConfig(lr=1e-2, weight_decay=0.1), learner)
    follow_languages(learner, optimizer)
    return learner, optimizer


def batch_of(*languages: str) -> SpeechBatch:
    random = torch.Generator().manual_seed(len(languages))
    waveforms = [torch.randn(6000, generator=random) for _ in languages]
    ids = [f"u{i}" for i in range(len(languages))]
    return SpeechBatch(Packed.from_list(waveforms), ids, list(languages), torch.arange(len(languages)))


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: matrix.weight.detach().clone() for name, matrix in matrices(learner.encoder).items()}


def update(learner: Learner, optimizer: torch.optim.Optimizer, *languages: str) -> None:
    for language in languages:
        learner(batch_of(language)).total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def used_by(learner: Learner, name: str, *languages: str) -> Tensor:
    edit = matrices(learner.encoder)[name].edit
    assert isinstance(edit, WeightMask)
    return torch.stack([edit.mask(LANGUAGES.index(language)) for language in languages]).any(0)


def test_weights_that_an_update_does_not_use_keep_their_bits_under_adamw() -> None:
    learner, optimizer = learner_of()
    update(learner, optimizer, "a", "b", "c")  # every weight that is used at all has momentum now
    for languages in (("a",), ("b", "c"), ("c",)):
        before = weights_of(learner)
        update(learner, optimizer, *languages)
        for name, after in weights_of(learner).items():
            used = used_by(learner, name, *languages)
            assert torch.equal(after[~used], before[name][~used]), (languages, name)
            assert (after[used] != before[name][used]).float().mean() > 0.99, (languages, name)


def test_an_update_that_was_left_out_does_not_count() -> None:
    learner, optimizer = learner_of()
    update(learner, optimizer, "a", "b", "c")
    learner(batch_of("a")).total.backward()
    optimizer.zero_grad(set_to_none=True)  # as the loop does with a non-finite loss
    before = weights_of(learner)
    update(learner, optimizer, "b")
    for name, after in weights_of(learner).items():
        used = used_by(learner, name, "b")
        assert torch.equal(after[~used], before[name][~used])


def test_protected_languages_keep_every_weight_that_they_use() -> None:
    learner, optimizer = learner_of(protected=("a", "b"))
    before = weights_of(learner)
    for _ in range(2):
        update(learner, optimizer, "c", "a")
    for name, after in weights_of(learner).items():
        used = used_by(learner, name, "a", "b")
        assert torch.equal(after[used], before[name][used])
        free = used_by(learner, name, "c") & ~used
        assert (after[free] != before[name][free]).all()


def test_micro_batches_hold_one_known_language() -> None:
    learner, _ = learner_of()
    with pytest.raises(ConfigError, match=r"one has a, b; set `data.group_by"):
        learner(batch_of("a", "b"))
    with pytest.raises(ConfigError, match="not adapted to the language `d`"):
        learner(batch_of("d"))


def test_all_ones_train_as_the_dense_model_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    for objective in (Dense, AllOnes):
        job = fakes.make_job(corpus, encoder="wave-tiny", updates=3, objective=objective)
        fakes.run(job, tmp_path / objective.__name__)
    assert fakes.curve(tmp_path / "Dense") == fakes.curve(tmp_path / "AllOnes")
    dense, ones = fakes.weights(tmp_path / "Dense", 3), fakes.weights(tmp_path / "AllOnes", 3)
    assert all(torch.equal(ones[name], tensor) for name, tensor in dense.items())
    assert all("bits_LW" in name for name in ones.keys() - dense.keys())


@pytest.mark.parametrize("objective", [Masked, WithAdapters])
def test_one_process_two_ddp_ranks_and_two_fsdp2_ranks_agree(
    corpus: Path, tmp_path: Path, objective: type[fakes.NextFrame]
) -> None:
    options = {"encoder": "wave-tiny", "updates": 3, "objective": objective, "data": {"bins_multiple_of": 2}}
    fakes.run(fakes.make_job(corpus, **options), tmp_path / "one")  # type: ignore[arg-type]
    expected = fakes.curve(tmp_path / "one")
    for parallel in ("ddp", "fsdp2"):
        ended = fakes.finish(fakes.launch(corpus, tmp_path / parallel, ranks=2, parallel=parallel, **options))
        assert [code for code, _ in ended] == [0, 0], ended
        for step, row in fakes.curve(tmp_path / parallel).items():
            assert row == pytest.approx(expected[step], rel=2e-6), f"{parallel}, update {step}"
        mine, theirs = (
            load_file(tmp_path / name / "checkpoints" / "step_00000003" / "model.safetensors")
            for name in (parallel, "one")
        )
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=2e-5)
            else:
                assert torch.equal(tensor, theirs[name])
        if objective is Masked:
            start = fakes.make_job(corpus, **options).build().state_dict()  # type: ignore[arg-type]
            for name in (n for n in start if n.endswith("bits_LW")):
                weight = name.replace("edit.bits_LW", "weight")
                rows = [
                    torch.from_numpy(np.unpackbits(row.numpy(), bitorder="little").astype(bool)) for row in start[name]
                ]
                unused = ~(rows[0] | rows[1] | rows[2]).view(start[weight].shape)
                assert unused.any()
                assert torch.equal(mine[weight][unused], start[weight][unused]), "a weight of no language has moved"
