"""Scores in other trainers: the files, every refusal, and stock lerobot-train in a real process with a tiny pi0."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import refused, unpacked_wheel
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from test_buffer import checksums
from test_policies import RECIPE, record_dataset
from test_weights import LENGTHS, ramps, write_scores

from srpo_robot.awr import policies
from srpo_robot.awr.export import ADVANTAGE_TEXT, export_rabc, recap_labels, recap_thresholds
from srpo_robot.awr.weighting import weights_of
from srpo_robot.awr.weights import rabc_weights
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import write_table
from srpo_robot.cli import main
from srpo_robot.errors import TrainingError, UsageError
from srpo_robot.progress.pipeline import TABLE, read_progress
from srpo_robot.recipes import Weighting

VALUES = [np.linspace(0, 1, 9) ** 2, np.linspace(0.6, 0.2, 8)]  # two episodes: one reaches the end, one falls back
PLUGIN = Path(__file__).resolve().parents[1] / "srpo_robot" / "plugins" / "lerobot_policy_srpo_awr"


@pytest.fixture
def scored_dataset(squares_copy):
    """Four labelled episodes with a score written by hand. The last one has no value."""
    buffer = open_buffer(squares_copy)
    values = ramps()
    values[3][:] = np.nan
    write_scores(buffer, values)
    return buffer


def metadata(path):
    return pq.read_schema(path).metadata


# --- the files


def test_rabc_is_lerobots_schema_and_the_dataset_stays_as_it_was(cli, scored_dataset):
    before = checksums(scored_dataset.root)
    code, out, err = cli("export", scored_dataset.root, "--to", "rabc")
    assert code == 0, err
    path = scored_dataset.root / "sarm_progress.parquet"
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert types == {"index": "int64", "episode_index": "int64", "frame_index": "int64", "progress_sparse": "float"}
    assert metadata(path)[b"reward_model_path"] == b"an-encoder"
    table = pq.read_table(path)
    assert table["progress_sparse"].to_numpy() == pytest.approx(
        read_progress(scored_dataset)["value"], abs=1e-6, nan_ok=True
    )
    assert f"--sample_weighting.type=rabc --sample_weighting.progress_path={path}" in out
    assert "18 frames have no progress" in err
    assert "fallback_weight" in err
    assert "never audited" in err
    after = checksums(scored_dataset.root)
    assert {name: sum_ for name, sum_ in after.items() if name in before} == before
    assert len(LeRobotDataset("local/x", root=scored_dataset.root)) == sum(LENGTHS)  # still opens
    assert cli("export", scored_dataset.root, "--to", "rabc")[0] == 0  # an export replaces its own file


def test_exported_weights_equal_the_training_weights(cli, scored_dataset, tmp_path):
    options = ("--horizon", 5, "--beta", 0.5, "--kappa", 0.3, "--baseline", "value")
    options += ("--output", tmp_path / "new" / "w.parquet")
    code, out, err = cli("export", scored_dataset.root, "--to", "weights", *options)
    assert code == 0, err
    assert f"pip install {PLUGIN}" in out
    table = pq.read_table(tmp_path / "new" / "w.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "float"]
    assert table["index"].to_numpy().tolist() == list(range(84))
    weighting = Weighting(horizon=5, beta=0.5, kappa=0.3, baseline="value")
    want = weights_of(scored_dataset, read_progress(scored_dataset), weighting).frames.values
    assert table["weight"].to_numpy() == pytest.approx(want, rel=1e-6)
    assert not table["weight"].to_numpy()[-18:].any()  # undefined
    assert not list((tmp_path / "new").glob(".*"))


def test_recap_labels_by_hand():
    advantage = np.array([1.0, 2.0, 3.0, 4.0, 5.0, -9.0, -8.0, np.nan, np.nan])
    task = np.array(["a"] * 5 + ["b"] * 3 + ["c"])
    thresholds = recap_thresholds(advantage, task, 0.4)
    assert thresholds == pytest.approx({"a": 3.4, "b": -8.4})
    labels = recap_labels(advantage, task, thresholds)
    assert labels.tolist() == [False, False, False, True, True, False, True, None, None]
    with pytest.raises(UsageError, match="between 0 and 1"):
        recap_thresholds(advantage, task, 1.0)
    with pytest.raises(TrainingError, match="no finite advantage"):
        recap_thresholds(np.full(2, np.nan), task[:2], 0.3)


def test_recap_is_a_column_and_its_text(cli, scored_dataset):
    code, out, err = cli("export", scored_dataset.root, "--to", "recap", "--horizon", 5, "--positive", 0.4)
    assert code == 0, err
    path = scored_dataset.sidecar / "recap.parquet"
    table = pq.read_table(path)
    assert [str(field.type) for field in table.schema] == ["int64", "bool", "string"]
    labels, text = table["advantage"].to_pylist(), table["advantage_text"].to_pylist()
    assert labels[-18:] == [None] * 18
    assert text[-18:] == [""] * 18
    assert text[:66] == [ADVANTAGE_TEXT[label] for label in labels[:66]]
    assert sum(labels[:66]) == pytest.approx(0.4 * 66, abs=1)
    assert sum(labels[:44]) / 44 > sum(labels[44:66]) / 22  # successes have positive labels more often
    assert json.loads(metadata(path)[b"srpo"])["positive"] == 0.4
    assert "of the frames are positive" in out


# --- refusals


@pytest.mark.parametrize("kind", ["rabc", "weights", "recap"])
def test_scores_that_are_missing_stale_or_of_another_dataset(cli, squares_copy, kind):
    refused(cli("export", squares_copy, "--to", kind), "does not exist", "srpo-robot score-dataset")
    buffer = open_buffer(squares_copy)
    write_scores(buffer, ramps(), dataset="another")
    refused(cli("export", squares_copy, "--to", kind), "another state of its dataset")
    write_scores(buffer, [np.full(n, np.nan) for n in LENGTHS])
    code, _, err = cli("export", squares_copy, "--to", kind)
    assert code == 1
    assert "srpo-robot score-dataset" in err
    assert not list(squares_copy.glob("*.parquet"))
    assert sorted(path.name for path in buffer.sidecar.iterdir()) == sorted(
        path for path in ("labels.parquet", TABLE) if (buffer.sidecar / path).exists()
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--beta", 0), "must be positive"),
        (("--w-max", -2), "must be positive"),
        (("--horizon", 24), "at most 23"),
        (("--output", "{root}/data/chunk-000/w.parquet"), "among the dataset's recorded files"),
        (("--output", "{root}/meta/w.parquet"), "among the dataset's recorded files"),
        (("--output", "{root}/srpo/progress.parquet"), "exists and is no weights export"),
        (("--output", "{root}/w.csv"), "does not end in .parquet"),
    ],
)
def test_invalid_options(cli, scored_dataset, options, says):
    before = checksums(scored_dataset.root)
    options = [str(option).format(root=scored_dataset.root) for option in options]
    refused(cli("export", scored_dataset.root, "--to", "weights", *options), says)
    assert checksums(scored_dataset.root) == before


def test_a_progress_file_of_another_program_is_left_alone(cli, scored_dataset):
    path = scored_dataset.root / "sarm_progress.parquet"
    path.write_bytes(b"what SARM wrote")
    refused(cli("export", scored_dataset.root, "--to", "rabc"), "is no rabc export of srpo-robot", "--output FILE")
    assert path.read_bytes() == b"what SARM wrote"


def test_a_share_that_labels_nothing(cli, scored_dataset):
    refused(cli("export", scored_dataset.root, "--to", "recap", "--positive", 0), "between 0 and 1")


# --- stock lerobot-train

TRAIN = """
import importlib, json, sys
import torch
torch.set_num_threads(1)
from lerobot.scripts import lerobot_train
from srpo_robot.awr.tiny import architecture

sizes, runs = map(json.loads, sys.argv[1:])
update = lerobot_train.update_policy

def recorded(metrics, policy, batch, *arguments, **options):
    "One step, with the losses of its samples under the same noise, by the class's own forward."
    state = torch.get_rng_state()
    policy.train()
    with torch.no_grad():
        losses, _ = type(policy).forward(policy, batch, reduction="none")
    torch.set_rng_state(state)
    result = update(metrics, policy, batch, *arguments, **options)
    row = {"index": batch["index"].tolist(), "losses": losses.tolist(), "loss": metrics.loss.val}
    print(json.dumps(row), file=log, flush=True)
    return result

lerobot_train.update_policy = recorded
for path, options, site in runs:
    if site:
        sys.path.insert(0, site)
        importlib.invalidate_caches()
    sys.argv = ["lerobot-train", *options]
    with open(path, "w") as log, architecture(sizes):
        lerobot_train.main()
"""


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """A scored dataset with two cameras, state and action, and a tiny pi0 that stock lerobot can load."""
    root = tmp_path_factory.mktemp("stock")
    buffer = record_dataset(root / "walks", (9, 8))
    write_scores(buffer, VALUES)
    policy, preprocessor, postprocessor = policies.build_policy(RECIPE, buffer)
    for part in (policy, preprocessor, postprocessor):
        part.save_pretrained(root / "pi0")
    policies.write_record(root / "pi0", preprocessor, {"tiny": RECIPE.tiny, "step": 0})
    path = root / "pi0" / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    (step,) = [step for step in content["steps"] if step["registry_name"] == "tokenizer_processor"]
    step["config"]["tokenizer_name"] = str(root / "pi0" / "tokenizer")
    path.write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory):
    """Returns the folder of the plugin as pip would install it."""
    return unpacked_wheel("lerobot_policy_srpo_awr", tmp_path_factory.mktemp("plugin"))


def options_of(walks, output, *options):
    """Returns options of stock lerobot-train for three steps."""
    return [
        *("--dataset.repo_id=local/walks", f"--dataset.root={walks / 'walks'}", f"--output_dir={output}"),
        *(f"--policy.path={walks / 'pi0'}", "--policy.device=cpu", "--policy.push_to_hub=false"),
        *("--steps=3", "--batch_size=4", "--num_workers=0", "--log_freq=1", "--save_freq=1", "--seed=3"),
        *options,
    ]


def test_the_wheel_is_named_as_lerobot_looks_for_it(plugin_folder):
    (path,) = plugin_folder.glob("*.dist-info/METADATA")
    assert "Name: lerobot_policy_srpo_awr\n" in path.read_text()


class Trained(NamedTuple):
    """One row per step of each training, and the weights of the second one."""

    by_ra_bc: list[dict[str, Any]]
    by_awr: list[dict[str, Any]]
    weights: np.ndarray  # (frames,)


@pytest.fixture(scope="module")
def trainings(walks, plugin_folder, tmp_path_factory) -> Trained:
    """Stock lerobot-train by RA-BC, then by AWR, in one process, which finds the plugin only after the first training.

    RA-BC reads the progress file at lerobot's default path.
    """
    folder, data = tmp_path_factory.mktemp("trained"), walks / "walks"
    buffer = open_buffer(data)
    export_rabc(buffer, read_progress(buffer), data / "sarm_progress.parquet")
    weights = folder / "w.parquet"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["srpo-robot", "export", str(data), "--to", "weights", "--horizon", "3"])
        sys.argv += ["--output", str(weights)]
        main()
    assert end.value.code == 0
    plugin = (
        "--sample_weighting.type=srpo_awr",
        f"--sample_weighting.extra_params={json.dumps({'path': str(weights)})}",
    )
    runs = [
        (str(folder / "rabc.jsonl"), options_of(walks, folder / "rabc", "--sample_weighting.type=rabc"), ""),
        (str(folder / "awr.jsonl"), options_of(walks, folder / "awr", *plugin), str(plugin_folder)),
    ]
    command = [sys.executable, "-c", TRAIN, json.dumps(RECIPE.tiny), json.dumps(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=280)
    (data / "sarm_progress.parquet").unlink()
    assert process.returncode == 0, process.stderr[-3000:]
    by_ra_bc, by_awr = ([json.loads(line) for line in Path(log).read_text().splitlines()] for log, _, _ in runs)
    return Trained(by_ra_bc, by_awr, pq.read_table(weights)["weight"].to_numpy())


def test_stock_lerobot_trains_by_ra_bc_on_the_exported_progress(trainings):
    weights = rabc_weights(VALUES, chunk=4).values
    assert len(trainings.by_ra_bc) == 3
    for row in trainings.by_ra_bc:
        row_weights = weights[row["index"]]
        assert row["loss"] == pytest.approx((row_weights * row["losses"]).sum() / row_weights.sum(), rel=1e-4)
    assert trainings.by_ra_bc[0]["loss"] != pytest.approx(np.mean(trainings.by_ra_bc[0]["losses"]), rel=1e-3)


def test_stock_lerobot_trains_by_awr_through_the_plugin(trainings):
    weights, rows = trainings.weights, trainings.by_awr
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert len(rows) == 3
    for row in rows:
        row_weights = weights[row["index"]]
        assert row["loss"] == pytest.approx(np.mean(row_weights * row["losses"]), rel=1e-4)
        rabc_loss = (row_weights * row["losses"]).sum() / row_weights.sum()
        assert row["loss"] != pytest.approx(rabc_loss, rel=1e-3)  # not lerobot's formula
    assert rows[0]["loss"] != pytest.approx(np.mean(rows[0]["losses"]), rel=1e-3)
    assert rows[0]["losses"] == pytest.approx(trainings.by_ra_bc[0]["losses"])  # the same policy, samples and noise ...
    assert rows[2]["losses"] != pytest.approx(trainings.by_ra_bc[2]["losses"], rel=1e-4)  # ... and another gradient


# --- the plugin's own refusals


@pytest.fixture
def weighter(plugin_folder, monkeypatch):
    """The plugin's module as installed, with lerobot's factory put back afterwards."""
    import importlib

    from lerobot.utils import sample_weighting

    monkeypatch.setattr(sample_weighting, "make_sample_weighter", sample_weighting.make_sample_weighter)
    monkeypatch.syspath_prepend(str(plugin_folder))
    module = importlib.import_module("lerobot_policy_srpo_awr.weighter")
    module.register()
    return module


def make(walks, policy, **extra) -> Any:
    from lerobot.utils import sample_weighting

    config = sample_weighting.SampleWeightingConfig(type="srpo_awr", extra_params=extra)
    root = str(walks / "walks")
    return sample_weighting.make_sample_weighter(config, policy, "cpu", dataset_root=root, dataset_repo_id="local/w")  # type: ignore[arg-type]


class Policy:
    """The part of a policy that the weighter needs: one loss per sample."""

    def __init__(self, losses):
        self.losses = losses

    def forward(self, batch, reduction="mean"):
        return (self.losses if reduction == "none" else self.losses.mean()), {}


class Unreduced:
    def forward(self, batch):
        return 0.0, {}


def test_the_plugin_weighs_training_and_not_evaluation(cli, walks, weighter, tmp_path):
    import torch

    assert cli("export", walks / "walks", "--to", "weights", "--horizon", 3)[0] == 0  # the default path is used
    weights = pq.read_table(walks / "walks" / "srpo" / "awr_weights.parquet")["weight"].to_numpy()
    policy = Policy(torch.tensor([1.0, 2.0]))
    sample_weighter = make(walks, policy)
    batch = {"index": torch.tensor([4, 11])}
    ones, stats = sample_weighter.compute_batch_weights(batch)
    assert ones.tolist() == [1.0, 1.0]
    assert stats["mean"] == pytest.approx(weights[[4, 11]].mean())
    assert policy.forward(batch, reduction="none")[0].tolist() == pytest.approx(weights[[4, 11]] * [1.0, 2.0])
    assert float(policy.forward(batch)[0]) == 1.5
    assert sample_weighter.get_stats()["num_frames"] == 17
    with pytest.raises(ValueError, match=r"no weight for frames \[17\]"):
        sample_weighter.compute_batch_weights({"index": torch.tensor([17])})
    with pytest.raises(ValueError, match="no 'index'"):
        sample_weighter.compute_batch_weights({})
    policy.forward = Policy.forward.__get__(policy)  # the weights are removed again
    sample_weighter.compute_batch_weights(batch)
    policy.forward(batch, reduction="none")
    with pytest.raises(RuntimeError, match="does not apply the weights"):
        sample_weighter.compute_batch_weights(batch)


def test_the_plugin_refuses_files_that_do_not_fit(cli, walks, weighter, tmp_path):
    from torch import ones

    policy, path = Policy(ones(1)), tmp_path / "w.parquet"
    with pytest.raises(ValueError, match="does not exist; write it: srpo-robot export"):
        make(walks, policy, path=str(path))
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="holds no weights of srpo-robot"):
        make(walks, policy, path=str(path))
    path.unlink()
    assert cli("export", walks / "walks", "--to", "weights", "--horizon", 3, "--output", path)[0] == 0
    parent = json.loads(metadata(path)[b"srpo"])
    table = pq.read_table(path)
    index, weight = table["index"].to_numpy(), table["weight"].to_numpy()

    def with_(match, index=index, weight=weight, **changes):
        write_table(path, {"index": index, "weight": weight}, parent | changes)
        with pytest.raises(ValueError, match=match):
            make(walks, policy, path=str(path))

    with_("of another dataset", lengths="another")
    with_("older score", parent="another")
    with_("one row for every frame", index=np.arange(16), weight=weight[:16])
    with_("negative, NaN or all zero", weight=weight * 0)
    with_("negative, NaN or all zero", weight=weight * np.nan)
    with_("negative, NaN or all zero", weight=-weight)
    with pytest.raises(ValueError, match="extra_params has unknown beta; srpo_awr takes path"):
        make(walks, policy, beta=1.0)
    write_table(path, {"index": index, "weight": weight}, parent)
    with pytest.raises(ValueError, match="Unreduced has no per-sample loss"):
        make(walks, Unreduced(), path=str(path))
    assert make(walks, policy, path=str(path)) is not None


def test_other_types_are_lerobots_own(weighter):
    from lerobot.utils import sample_weighting

    config = sample_weighting.SampleWeightingConfig(type="uniform")
    uniform = sample_weighting.make_sample_weighter(config, None, "cpu")  # type: ignore[arg-type]
    assert type(uniform).__name__ == "UniformWeighter"
    assert sample_weighting.make_sample_weighter(None, None, "cpu") is None  # type: ignore[arg-type]
    before = sample_weighting.make_sample_weighter
    weighter.register()
    assert sample_weighting.make_sample_weighter is before
