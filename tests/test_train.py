"""Tests of the training loop on a tiny real pi0: exact resume and seeds, equal splits, complete checkpoints."""

import errno
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.sampler import EpisodeAwareSampler
from safetensors.torch import load_file
from test_policies import RECIPE, record_dataset

from srpo_robot.awr import checkpoints, checks, data
from srpo_robot.awr.checkpoints import Ema
from srpo_robot.awr.checks import last_checkpoint
from srpo_robot.awr.losses import per_sample_loss
from srpo_robot.awr.policies import build_policy, load_policy
from srpo_robot.awr.run_state import check_weights, open_run, run_record
from srpo_robot.awr.sampling import FlowNoise, held_out, spread_frames
from srpo_robot.awr.train import LoopOptions, train
from srpo_robot.buffer.training import TrainingSet
from srpo_robot.errors import TrainingError, UsageError


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return record_dataset(tmp_path_factory.mktemp("train") / "walks")


@pytest.fixture(scope="module")
def weights(buffer):
    return np.random.default_rng(0).exponential(size=buffer.total_frames)


@pytest.fixture(scope="module")
def run_dir(buffer, weights, tmp_path_factory):
    """A run of four steps over twelve frames in batches of four, which crosses an epoch. Tests must not change it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    train(buffer, RECIPE, weights, output, LoopOptions(provenance={"advantage": "abc"}, device="cpu"))
    return output


def metrics(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def interrupt_after(step):
    def on_step(now, *_):
        if now == step:
            raise KeyboardInterrupt

    return on_step


def test_a_run_writes_lerobots_layout_and_a_record(buffer, weights, run_dir):
    checkpoint = last_checkpoint(run_dir)
    assert checkpoint.name == "000004"
    assert (run_dir / "checkpoints" / "last").resolve() == checkpoint.resolve()
    model, state = checkpoint / "pretrained_model", checkpoint / "training_state"
    for name in ("config.json", "model.safetensors", "train_config.json", "policy_preprocessor.json", "srpo.json"):
        assert (model / name).is_file(), name
    assert (state / "optimizer_state.safetensors").is_file()
    assert not list((run_dir / "checkpoints").glob(".partial*"))
    record = json.loads((model / "srpo.json").read_text())
    assert record["recipe"]["learning_rate"] == RECIPE.learning_rate
    assert (record["tiny"], record["seed"], record["step"]) == (RECIPE.tiny, 5, 4)
    assert record["dataset"]["fingerprint"] == buffer.fingerprint
    assert record["provenance"] == {"advantage": "abc"}
    policy, *_ = load_policy(run_dir)
    assert policy.config.use_relative_actions


def test_metrics_have_one_line_per_step(run_dir):
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert lines[0]["lr"] == pytest.approx(RECIPE.learning_rate / 2)  # the first of one warmup step
    assert lines[3]["lr"] < lines[1]["lr"] <= RECIPE.learning_rate
    assert len({line["mean_weight"] for line in lines}) > 1


def test_the_loss_is_the_weighted_one(buffer, run_dir, weights):
    policy, preprocessor, _ = build_policy(RECIPE, buffer)
    rows = list(EpisodeAwareSampler([0, 7], [7, 12], shuffle=True, seed=5))[:4]
    with FlowNoise(policy).rows((5, 1), 0, 4):
        losses = per_sample_loss(policy, preprocessor(TrainingSet(buffer, 4).__getitems__(rows)))
    want = float((losses.detach().numpy() * weights[rows]).mean())
    assert metrics(run_dir)[0]["loss"] == pytest.approx(want, rel=1e-5)
    assert metrics(run_dir)[0]["mean_weight"] == pytest.approx(weights[rows].mean(), rel=1e-5)


def test_the_same_seed_gives_the_same_run_after_other_draws(buffer, weights, run_dir, tmp_path):
    torch.manual_seed(123)
    train(buffer, RECIPE, weights, tmp_path / "again", LoopOptions(device="cpu"))
    assert metrics(tmp_path / "again") == metrics(run_dir)
    train(buffer, replace(RECIPE, seed=6), weights, tmp_path / "other", LoopOptions(steps=1, device="cpu"))
    assert metrics(tmp_path / "other")[0]["loss"] != metrics(run_dir)[0]["loss"]


@pytest.mark.parametrize(
    "change",
    [{"ema_decay": 0.9}, {"ema_decay": 0.0}, {"weights_as": "sampling"}, {"image_shift": 0.1, "state_noise": 0.05}],
)
def test_resume_repeats_an_uninterrupted_run_exactly(buffer, weights, tmp_path, change):
    recipe = replace(RECIPE, **{"ema_decay": 0.9} | change)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(buffer, recipe, weights, whole, LoopOptions(device="cpu"))
    with pytest.raises(KeyboardInterrupt):
        train(buffer, recipe, weights, parts, LoopOptions(device="cpu", on_step=interrupt_after(2)))
    assert last_checkpoint(parts).name == "000002"
    with (parts / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 9}\n{"step": 4, "lo')  # the state after a crash
    torch.manual_seed(77)
    train(buffer, recipe, weights, parts, LoopOptions(resume=True, device="cpu"))
    assert metrics(parts) == metrics(whole)
    for name in ("pretrained_model/model.safetensors", "training_state/optimizer_state.safetensors"):
        one, other = (load_file(last_checkpoint(run) / name) for run in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_more_steps_can_be_added(buffer, weights, tmp_path):
    train(buffer, RECIPE, weights, tmp_path / "run", LoopOptions(steps=1, device="cpu"))
    with pytest.raises(UsageError, match="is trained to step 1; give --steps above that"):
        train(buffer, RECIPE, weights, tmp_path / "run", LoopOptions(resume=True, device="cpu"))
    train(buffer, RECIPE, weights, tmp_path / "run", LoopOptions(resume=True, steps=2, device="cpu"))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_the_checkpoint_carries_the_average(run_dir):
    average = load_file(last_checkpoint(run_dir) / "pretrained_model" / "model.safetensors")
    raw = load_file(last_checkpoint(run_dir) / "training_state" / "raw_weights.safetensors")
    assert raw.keys() <= average.keys()
    assert not torch.equal(average["model.state_proj.weight"], raw["model.state_proj.weight"])


def test_average_by_hand():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    ema = Ema(layer, 0.3)
    for step, value in ((1, 2.0), (1000, 4.0)):
        torch.nn.init.constant_(layer.weight, value)
        ema.update(step)
    first = 1.0 * 2 / 11 + 2.0 * 9 / 11  # (1 + t) / (10 + t) is below 0.3 at the first step
    with ema.swapped():
        assert layer.weight.item() == pytest.approx(0.3 * first + 0.7 * 4.0)
    assert layer.weight.item() == 4.0


def test_ctrl_c_finishes_the_step_and_saves_it(buffer, weights, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def press(step, *_):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(buffer, RECIPE, weights, tmp_path / "run", LoopOptions(on_step=press, device="cpu"))
    assert last_checkpoint(tmp_path / "run").name == "000002"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failed_save_is_a_one_line_error_and_keeps_the_last_checkpoint(buffer, weights, tmp_path, monkeypatch):
    recipe, real = replace(RECIPE, save_every=1), checkpoints.write_record

    def fail_at_2(folder, preprocessor, record):
        if record["step"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        real(folder, preprocessor, record)

    monkeypatch.setattr(checkpoints, "write_record", fail_at_2)
    with pytest.raises(TrainingError, match=r"step 2 cannot be written .*No space left.* are whole: free some space"):
        train(buffer, recipe, weights, tmp_path / "run", LoopOptions(device="cpu"))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["000001", "last"]  # no partial file uses up the space
    monkeypatch.setattr(checkpoints, "write_record", real)
    train(buffer, recipe, weights, tmp_path / "run", LoopOptions(resume=True, device="cpu"))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "000001", "000002", "000003", "000004", "last",
    ]  # fmt: skip


def test_an_existing_output_is_not_overwritten(buffer, weights, run_dir):
    with pytest.raises(UsageError, match=r"exists; go on with it: --resume, or write elsewhere: --output"):
        train(buffer, RECIPE, weights, run_dir, LoopOptions(device="cpu"))


def test_resume_with_another_recipe_weights_or_dataset_is_refused(buffer, weights, run_dir, tmp_path):
    again = LoopOptions(resume=True, steps=9, device="cpu")
    with pytest.raises(UsageError, match=r"another learning_rate \(then 0.01, now 0.02\); start a new run"):
        train(buffer, replace(RECIPE, learning_rate=0.02), weights, run_dir, again)
    with pytest.raises(UsageError, match="another set of weights"):
        train(buffer, RECIPE, weights + 1, run_dir, again)
    with pytest.raises(UsageError, match="has no checkpoint to resume"):
        train(buffer, RECIPE, weights, tmp_path / "nothing", again)
    other = record_dataset(tmp_path / "other", (6, 6))
    with pytest.raises(UsageError, match="another dataset"):
        train(other, RECIPE, weights, run_dir, again)


def test_a_run_of_an_older_version_resumes(buffer, weights, run_dir, tmp_path):
    """The record has old names and lacks later keys, which take their defaults."""
    output = shutil.copytree(run_dir, tmp_path / "old", symlinks=True)
    path = last_checkpoint(output) / "pretrained_model" / "srpo.json"
    record = json.loads(path.read_text())
    old = {key: value for key, value in record["recipe"].items() if key not in ("step_horizon", "action_weights")}
    path.write_text(json.dumps(record | {"recipe": old | {"timestep_weights": False, "value": ""}}))
    now = run_record(buffer, RECIPE, check_weights(weights, buffer.total_frames), {}, 1)
    assert open_run(output, now, resume=True, total=9, steps_given=True) == (last_checkpoint(output), 9)
    now = run_record(buffer, replace(RECIPE, step_horizon=1), check_weights(weights, buffer.total_frames), {}, 1)
    with pytest.raises(UsageError, match=r"another step_horizon \(then 5, now 1\); start a new run"):
        open_run(output, now, resume=True, total=9, steps_given=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:-1], "11,.* weights for 12 frames"),
        (lambda w: w * 0, "every weight is zero"),
        (lambda w: np.where(np.arange(12) == 3, np.nan, w), "1 weights are negative, NaN .* frame 3"),
        (lambda w: np.where(np.arange(12) > 4, -1.0, w), "7 weights .* frame 5"),
    ],
)
def test_unusable_weights(buffer, weights, tmp_path, change, message):
    with pytest.raises(TrainingError, match=message):
        train(buffer, RECIPE, change(weights), tmp_path / "run", LoopOptions(device="cpu"))
    assert not (tmp_path / "run").exists()


def test_frames_of_weight_zero_have_no_effect(buffer, tmp_path):
    """A frame of weight zero adds nothing to the loss."""
    only = np.zeros(buffer.total_frames)
    only[0] = 12.0
    train(buffer, RECIPE, only, tmp_path / "run", LoopOptions(steps=3, device="cpu"))
    lines = metrics(tmp_path / "run")
    assert sum(line["mean_weight"] for line in lines) == pytest.approx(3.0)  # one epoch: frame 0 is drawn once
    assert [line["loss"] > 0 for line in lines] == [line["mean_weight"] > 0 for line in lines]


def test_sampling_by_weight_draws_only_frames_with_weight(buffer, tmp_path):
    only = np.zeros(buffer.total_frames)
    only[[0, 5]] = 12.0
    recipe = replace(RECIPE, weights_as="sampling")
    train(buffer, recipe, only, tmp_path / "run", LoopOptions(steps=3, device="cpu"))
    lines = metrics(tmp_path / "run")
    assert all(line["mean_weight"] == 1.0 and line["loss"] == line["unweighted_loss"] > 0 for line in lines)
    with pytest.raises(TrainingError, match=r"nan_batch\.json"):  # the error lists the frames of the batch
        train(
            buffer,
            replace(recipe, learning_rate=1e30, warmup_steps=0),
            only,
            tmp_path / "nan",
            LoopOptions(device="cpu", steps=40),
        )
    batch = json.loads((tmp_path / "nan" / "nan_batch.json").read_text())
    assert {sample["index"] for sample in batch["samples"]} == {0, 5}


def test_actions_with_weights_of_their_own_cannot_be_drawn(buffer, weights, tmp_path):
    recipe = replace(RECIPE, weights_as="sampling", action_weights=True)
    with pytest.raises(UsageError, match='set weights_as to "loss"'):
        train(buffer, recipe, weights, tmp_path / "run", LoopOptions(device="cpu"))


def test_a_loss_that_is_not_finite_stops_the_run_and_lists_its_frames(buffer, weights, tmp_path):
    recipe = replace(RECIPE, learning_rate=1e30, warmup_steps=0, steps=40, batch_size=2, accumulate=2, save_every=1)
    with pytest.raises(TrainingError, match=r"NaN or infinite.*nan_batch\.json"):
        train(buffer, recipe, weights, tmp_path / "run", LoopOptions(device="cpu"))
    batch = json.loads((tmp_path / "run" / "nan_batch.json").read_text())
    good = int(last_checkpoint(tmp_path / "run").name)
    assert batch["step"] == good + 1 == len(metrics(tmp_path / "run")) + 1
    order = [*EpisodeAwareSampler([0, 7], [7, 12], shuffle=True, seed=5)]
    frames = [sample["index"] for sample in batch["samples"]]
    assert frames == (order * 40)[4 * good : 4 * good + len(frames)] if good < 3 else len(frames) in (2, 4)
    assert {sample["episode"] for sample in batch["samples"]} <= {0, 1}
    state = load_file(last_checkpoint(tmp_path / "run") / "pretrained_model" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


def test_frames_read_from_disk_give_the_same_run(buffer, weights, run_dir, tmp_path, monkeypatch):
    pickle.dumps(TrainingSet(buffer, 4, cache_gb=0.0))  # spawned workers need it, and starting one takes 10 s
    monkeypatch.setattr(data, "decoding_workers", lambda: 0)
    train(buffer, replace(RECIPE, cache_gb=0.0), weights, tmp_path / "disk", LoopOptions(device="cpu"))
    assert metrics(tmp_path / "disk") == metrics(run_dir)


# --- the same update under every split ---


PLAN = {"ema_decay": 0.0, "steps": 5, "image_shift": 0.1, "state_noise": 0.05}
STEADY = replace(RECIPE, batch_size=8, **PLAN)  # 12 frames: batches run on into the next epoch


def same_run(one, other):
    """Asserts equal metrics up to rounding, which AdamW amplifies a little in every step."""
    first, second = metrics(one), metrics(other)
    assert [line.keys() for line in first] == [line.keys() for line in second]
    for row, other_row in zip(first, second, strict=True):
        assert row == pytest.approx(other_row, rel=2e-4), row["step"]


@pytest.fixture(scope="module")
def whole(buffer, weights, tmp_path_factory):
    """A run of five steps of one process with eight samples in one pass."""
    output = tmp_path_factory.mktemp("whole") / "run"
    train(buffer, STEADY, weights, output, LoopOptions(device="cpu"))
    return output


@pytest.mark.parametrize(("batch", "passes"), [(1, 8), (4, 2)])
def test_passes_that_accumulate_make_the_update_of_one_large_batch(buffer, weights, tmp_path, whole, batch, passes):
    train(
        buffer,
        replace(STEADY, batch_size=batch, accumulate=passes),
        weights,
        tmp_path / "run",
        LoopOptions(device="cpu"),
    )
    same_run(tmp_path / "run", whole)
    assert metrics(whole)[4]["epoch"] == pytest.approx(40 / 12)


WORKER = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np, torch
from dataclasses import replace
from pathlib import Path
from test_policies import RECIPE
from srpo_robot.awr.train import LoopOptions, train
from srpo_robot.buffer.opening import open_buffer
torch.set_num_threads(1)
root = Path({root!r})
buffer = open_buffer(root / "data")
recipe = replace(RECIPE, **({plan} | dict({change})))
train(buffer, recipe, np.load(root / "weights.npy"), root / "run", LoopOptions(device="cpu", {options}))
"""


def worker(root, change="", options="", before="") -> Path:
    """Writes a script that trains on root/data into root/run, to be launched or killed."""
    path = root / "worker.py"
    text = WORKER.format(tests=str(Path(__file__).parent), root=str(root), plan=PLAN, change=change, options=options)
    path.write_text(text.replace("root = Path", before + "\nroot = Path", 1))
    return path


@pytest.fixture
def place(buffer, weights, tmp_path):
    """Creates a folder with the data and the weights for a worker."""
    shutil.copytree(buffer.root, tmp_path / "data")
    np.save(tmp_path / "weights.npy", weights)
    return tmp_path


def launch(script, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(script)], capture_output=True, text=True, env=environment, check=False, timeout=280
    )


def test_two_processes_equal_one_and_one_can_resume_their_run(place, whole, weights, buffer):
    stop = "def stop(step, *_):\n    if step == 3: raise KeyboardInterrupt"  # Ctrl-C in one of them
    result = launch(worker(place, "batch_size=2, accumulate=2", "on_step=stop", stop))
    assert result.stderr.count("KeyboardInterrupt") >= 2, result.stderr
    assert last_checkpoint(place / "run").name == "000003"
    assert json.loads((last_checkpoint(place / "run") / "pretrained_model" / "srpo.json").read_text())["processes"] == 2
    train(buffer, STEADY, weights, place / "run", LoopOptions(resume=True, device="cpu"))  # the split may change
    same_run(place / "run", whole)


def test_resume_with_another_batch_size_is_refused(buffer, weights, whole):
    with pytest.raises(UsageError, match=r"number of samples per step \(then 8, now 16: batch_size x accumulate"):
        train(buffer, replace(STEADY, accumulate=2), weights, whole, LoopOptions(resume=True, steps=9, device="cpu"))


def test_a_nan_in_one_process_stops_the_other(place):
    spoil = (
        "import srpo_robot.awr.train as t; real = t.awr_loss; calls = []\n"
        "def spoiled(loss, *rest):\n"
        "    calls.append(0)\n"
        "    import os\n"
        "    return real(loss * float('nan') if len(calls) == 2 and os.environ['RANK'] == '1' else loss, *rest)\n"
        "t.awr_loss = spoiled"
    )
    result = launch(worker(place, "batch_size=4", before=spoil))
    assert result.returncode != 0
    assert "TrainingError: the loss is NaN or infinite on another process" in result.stderr
    assert "TrainingError: the loss is NaN or infinite at frames" in result.stderr
    assert len(json.loads((place / "run" / "nan_batch.json").read_text())["samples"]) == 8


# --- held out ---


def test_held_out_episodes_are_measured_under_fixed_noise_and_never_trained_on(weights, tmp_path):
    buffer = record_dataset(tmp_path / "data", (4, 4, 4, 4))
    weights = np.arange(1.0, 17.0)
    recipe = replace(RECIPE, validation_share=0.5, steps=4, save_every=2, ema_decay=0.0)
    train(buffer, recipe, weights, tmp_path / "run", LoopOptions(device="cpu"))
    lines = metrics(tmp_path / "run")
    assert ["validation_loss" in line for line in lines] == [False, True, False, True]
    chosen = held_out(buffer.episodes, 0.5, recipe.seed)
    validation = [e for e in buffer.episodes if e.index in chosen]
    training = np.concatenate(
        [np.arange(e.first_frame, e.first_frame + 4) for e in buffer.episodes if e not in validation]
    )
    policy, preprocessor, *_ = load_policy(tmp_path / "run")
    frames = spread_frames(validation, 100)
    with torch.no_grad(), FlowNoise(policy).rows((recipe.seed, 0), 0, 8):
        losses = per_sample_loss(policy, preprocessor(TrainingSet(buffer, 4).__getitems__(frames))).numpy()
    assert lines[3]["validation_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    scale = weights * weights.mean() / weights[training].mean()  # over the trained frames the mean does not change
    assert lines[3]["validation_weighted_loss"] == pytest.approx((losses * scale[frames]).mean(), rel=1e-4)
    assert np.mean([line["mean_weight"] for line in lines]) == pytest.approx(weights.mean())  # two epochs of 8 frames


def test_the_held_out_loss_belongs_to_the_saved_weights(buffer, weights, tmp_path):
    """A tiny learning rate changes nothing, so the measured loss stays the same for any training noise."""
    big = record_dataset(tmp_path / "data", (4, 4, 4, 4))
    recipe = replace(
        RECIPE, validation_share=0.3, steps=3, save_every=1, learning_rate=1e-12, final_learning_rate=1e-12
    )
    train(big, recipe, np.ones(16), tmp_path / "run", LoopOptions(device="cpu"))
    losses = [line["validation_loss"] for line in metrics(tmp_path / "run")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    with pytest.raises(TrainingError, match="every frame with weight is held out"):
        chosen = held_out(big.episodes, 0.3, recipe.seed)
        only = np.repeat([float(e.index in chosen) for e in big.episodes], 4)
        train(big, recipe, only, tmp_path / "other", LoopOptions(device="cpu"))


# --- trackers ---


def test_metrics_go_to_tensorboard_too(buffer, weights, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(buffer, RECIPE, weights, tmp_path / "run", LoopOptions(steps=2, device="cpu", track=("tensorboard",)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "srpo-robot"))
    events.Reload()
    losses = {scalar.step: scalar.value for scalar in events.Scalars("loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in metrics(tmp_path / "run")})


def test_a_missing_tracker_is_named(buffer, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--track wandb needs a package: pip install srpo-robot\[tracking\]"):
        train(buffer, RECIPE, weights, tmp_path / "run", LoopOptions(device="cpu", track=("wandb",)))
    with pytest.raises(UsageError, match="no tracker 'excel'; there are: tensorboard, wandb"):
        train(buffer, RECIPE, weights, tmp_path / "run", LoopOptions(device="cpu", track=("excel",)))
    assert not (tmp_path / "run").exists()


# --- disks and kills ---


def test_kill_9_during_a_save_keeps_the_last_checkpoint_and_the_run_resumes(place, whole, buffer, weights):
    wait = (
        "import time, srpo_robot.awr.checkpoints as c; real = c.write_record\n"
        "def slow(folder, preprocessor, record):\n"
        "    if record['step'] == 3:\n"
        "        print('saving', flush=True); time.sleep(200)\n"
        "    real(folder, preprocessor, record)\n"
        "c.write_record = slow"
    )
    script = worker(place, "batch_size=8, save_every=1", before=wait)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "saving"
        finally:
            child.kill()
    assert (place / "run" / "checkpoints" / ".partial-000003").is_dir()
    assert last_checkpoint(place / "run").name == "000002"
    load_policy(place / "run")
    train(buffer, STEADY, weights, place / "run", LoopOptions(resume=True, device="cpu"))
    assert metrics(place / "run") == metrics(whole)
    assert not (place / "run" / "checkpoints" / ".partial-000003").exists()


def test_a_full_disk(place):
    """The disk has room for the data and one checkpoint, not for two."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare")
    mount = 'mkdir -p "$0"; mount -t tmpfs -o size=400k t "$0"'
    if subprocess.run(["unshare", "-m", "sh", "-ec", mount, str(place / "run")], check=False).returncode:
        pytest.skip("this machine does not let us mount")
    script = worker(place, "batch_size=8, save_every=1")
    command = ["unshare", "-m", "sh", "-ec", f'{mount}; "$1" "$2" || true; ls -A "$0/checkpoints"', str(place / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert "TrainingError: the checkpoint of step" in result.stderr, result.stderr
    assert "free some space and go on with --resume" in result.stderr
    names = result.stdout.split()
    assert "last" in names
    assert "000001" in names
    assert not [name for name in names if name.startswith(".partial")]


# --- invalid numbers ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 0}, "accumulate 0 must be at least 1"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"grad_clip_norm": 0.0}, "grad_clip_norm 0.0 must be positive"),
        ({"ema_decay": 1.0}, "ema_decay 1.0 must be at least 0 and below 1"),
        ({"validation_share": 0.9}, "leaves .* no episode to train on"),
    ],
)
def test_invalid_recipes_are_refused(buffer, weights, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        train(buffer, replace(RECIPE, **change), weights, tmp_path / "run", LoopOptions(device="cpu"))
