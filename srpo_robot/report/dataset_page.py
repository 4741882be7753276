"""The report page of a scored dataset: summary, curves with their frames, falls of failures, weights, audit.

It reads the tables on disk and the recorded videos. It scores and embeds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.awr.weighting import mean_weight_by_label
from srpo_robot.awr.weights import effective_sample_size
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import UndecodableFrame
from srpo_robot.numerics import cell
from srpo_robot.progress.encoder_names import CAUTIONS
from srpo_robot.progress.evidence.audit import FILE as AUDIT
from srpo_robot.progress.pipeline import TABLE as PROGRESS
from srpo_robot.progress.pipeline import audit_origin
from srpo_robot.records import Episode
from srpo_robot.report.dataset import Fall, ScoredDataset, matched, read_scored, worst_falls
from srpo_robot.report.figures import draw_weights
from srpo_robot.report.frames import data_uri, jpeg, resized, shrunk, spread, tiled
from srpo_robot.report.page import Section, data_block, part, render, write_page
from srpo_robot.report.strategy_figure import FOLDER, file_names

STRIP_FRAMES, STRIP_HEIGHT = 24, 96  # frames of a film strip, and their height [px]
FALL_HEIGHT = 150  # [px]
MAX_STRIPS = 200  # episodes with a film strip
MAX_STRIP_BYTES = 14_000_000  # of all strips together; base64 adds a third
MAX_FALLS = 48
MAX_TASKS = 50  # rows of the table of tasks
CURVE_POINTS, ALL_POINTS = 160, 200_000  # most points of one curve and of all curves; a curve has at least 20


def make_report(buffer: Buffer, out: Path, on_episode: Callable[[int, int], None] | None = None) -> Path:
    """Writes the page of a scored buffer to `out`, one file that needs no network. Returns its path.

    Args:
        on_episode: called after each decoded episode with the number of finished episodes and the total.

    Raises:
        StaleTable: the dataset was not scored, or it has changed since. The message names the command.
    """
    scored = read_scored(buffer)
    falls = matched(scored, worst_falls(scored, MAX_FALLS))
    pictures = decode(scored, falls, on_episode)
    sections = [
        _summary(scored),
        _curves(scored, pictures),
        _falls(scored, falls, pictures),
        _strategies(scored),
        _weights(scored),
        *_audit(scored),
        _episodes(scored),
    ]
    lead = f"{len(buffer.episodes)} episodes scored by self-reference (SRPO, arXiv 2511.15605)"
    write_page(out, f"{buffer.root.name}: progress", lead, sections, _asset("curves.css"), _asset("curves.js"))
    return out


def _asset(name: str) -> str:
    return resources.files("srpo_robot.report").joinpath(name).read_text(encoding="utf-8")


# --- pictures: each episode is decoded once


@dataclass(frozen=True, eq=False)
class FilmStrip:
    """Frames of one episode side by side in one JPEG.

    Attributes:
        frames: frame numbers.
        jpeg: the picture.
        width, height: size of one frame [px].
    """

    frames: list[int]
    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Pictures:
    """Decoded pictures.

    Attributes:
        strips: film strips by episode_index.
        frames: JPEG frames by (episode_index, frame).
        missing: reason for a missing strip, by episode_index.
    """

    strips: dict[int, FilmStrip]
    frames: dict[tuple[int, int], bytes]
    missing: dict[int, str]


def decode(scored: ScoredDataset, falls: list[Fall], on_episode: Callable[[int, int], None] | None = None) -> Pictures:
    """Decodes the film strips of at most `MAX_STRIPS` episodes and the frames that `falls` show.

    A video that cannot be decoded goes into `Pictures.missing`.
    """
    needed: dict[int, set[int]] = {}
    for fall in falls:
        for index, frame in _shown(scored, fall):
            needed.setdefault(index, set()).add(frame)
    chosen = with_strips([e.index for e in scored.buffer.episodes], [fall.episode.index for fall in falls], MAX_STRIPS)
    todo = [e for e in scored.buffer.episodes if e.index in chosen or e.index in needed]
    pictures = Pictures({}, {}, {})
    size = 0
    for done, episode in enumerate(todo, start=1):
        try:
            frames = scored.buffer.frames(episode, scored.camera)
        except UndecodableFrame as error:
            pictures.missing[episode.index] = str(error).split(";")[0]
        else:
            pictures.frames.update(
                {(episode.index, t): jpeg(resized(frames[t], FALL_HEIGHT)) for t in needed.get(episode.index, ())}
            )
            if episode.index in chosen and size < MAX_STRIP_BYTES:
                pictures.strips[episode.index] = _strip(frames)
                size += len(pictures.strips[episode.index].jpeg)
        if on_episode is not None:
            on_episode(done, len(todo))
    return pictures


def with_strips(episodes: list[int], first: list[int], count: int) -> set[int]:
    """Returns the episodes that get a film strip: all if `count` allows, else `first`, then the others evenly."""
    chosen = first[:count]
    others = [index for index in episodes if index not in set(chosen)]
    room = count - len(chosen)
    return {*chosen, *(others[i] for i in (spread(len(others), room) if others and room else ()))}


def _strip(frames: np.ndarray) -> FilmStrip:
    picked = spread(len(frames), STRIP_FRAMES)
    small = [resized(frames[t], STRIP_HEIGHT) for t in picked]
    return FilmStrip(picked.tolist(), jpeg(tiled(small, len(small), gap=0)), small[0].shape[1], STRIP_HEIGHT)


def _shown(scored: ScoredDataset, fall: Fall) -> list[tuple[int, int]]:
    """Returns (episode_index, frame) of a fall's pictures.

    These are the fall's start and end, then the matched success at its match and after the same number of frames.
    """
    regress, match = fall.regress, fall.match
    failure = [(fall.episode.index, regress.start), (fall.episode.index, regress.end)]
    if match is None:
        return failure
    last = scored.buffer.episodes[match.episode_index].length - 1
    later = min(match.frame + regress.end - regress.start, last)
    return [*failure, (match.episode_index, match.frame), (match.episode_index, later)]


# --- sections


def _summary(scored: ScoredDataset) -> Section:
    buffer, config, encoder = scored.buffer, scored.provenance.config, scored.provenance.encoder
    good = sum(e.success is True for e in buffer.episodes)
    undefined = [e.index for e in buffer.episodes if not np.isfinite(scored.of("progress", e)).all()]
    written = datetime.fromtimestamp((buffer.sidecar / PROGRESS).stat().st_mtime, UTC)
    facts = [
        ("episodes", f"{len(buffer.episodes)}: {good} successes, {len(buffer.episodes) - good} failures"),
        ("frames", f"{buffer.total_frames} at {buffer.fps:g} per second"),
        ("tasks", str(len({e.task for e in buffer.episodes}))),
        ("cameras", ", ".join(name.removeprefix("observation.images.") for name in config.cameras)),
        ("encoder", f"{encoder.name} ({encoder.identity})"),
        ("windows", f"{config.windows}, {config.window_shape}, from frame {config.min_window}"),
        ("profile", f"{config.profile}; references {config.reference_name}; step value {config.value_name}"),
        ("undefined progress", f"{len(undefined)} episodes" + (f": {_listed(undefined)}" if undefined else "")),
        ("scored", f"{written:%Y-%m-%d %H:%M} UTC (the table's file)"),
    ]  # fmt: skip
    if config.reference:
        facts.append(("references from", config.reference))
    notes = []
    if config.profile != "loo":
        notes.append(
            f"In the profile {config.profile} a success is measured against its own end, so it ends at 1 by "
            "construction: that successes end higher than failures says nothing here."
        )
    rows, note = _task_rows(scored)
    warnings = [CAUTIONS[encoder.name]] if encoder.name in CAUTIONS else []
    tasks = part("table", rows) if len(rows) <= 13 else part("folded_table", "Tasks", rows)
    blocks = (part("facts", facts), tasks)
    return Section(title="Summary", notes=[*notes, *note], warnings=warnings, blocks=blocks)


def _task_rows(scored: ScoredDataset) -> tuple[list[tuple[str, ...]], list[str]]:
    members: dict[str, list[Episode]] = {}
    for episode in scored.buffer.episodes:
        members.setdefault(episode.task, []).append(episode)
    order = sorted(members, key=lambda task: (-len(members[task]), task))
    rows: list[tuple[str, ...]] = [
        ("task", "episodes", "successes", "final progress, success", "failure", "reward, failure")
    ]
    for task in order[:MAX_TASKS]:
        good = [e for e in members[task] if e.success]
        bad = [e for e in members[task] if not e.success]
        means = [_mean_final(scored, "progress", good), _mean_final(scored, "progress", bad)]
        means.append(_mean_final(scored, "reward", bad))
        rows.append((task, str(len(members[task])), str(len(good)), *means))
    hidden = len(order) - MAX_TASKS
    return rows, [f"The {MAX_TASKS} tasks with most episodes; {hidden} more are not listed."] if hidden > 0 else []


def _mean_final(scored: ScoredDataset, column: str, episodes: list[Episode]) -> str:
    finals = np.array([scored.of(column, e)[-1] for e in episodes])
    finals = finals[np.isfinite(finals)]
    return cell(finals.mean() if len(finals) else None)


def _curves(scored: ScoredDataset, pictures: Pictures) -> Section:
    tasks = {task: i for i, task in enumerate(dict.fromkeys(e.task for e in scored.buffer.episodes))}
    measures = {"progress": "progress"}
    value = scored.provenance.config.value_name
    if value != "progress":
        measures["value"] = f"step value ({value})"
    content = {
        "fps": scored.buffer.fps,
        "tasks": list(tasks),
        "measures": measures,
        "episodes": [_curve(scored, e, tasks[e.task], list(measures), pictures) for e in scored.buffer.episodes],
    }
    notes = [
        "Point at a curve to see its episode; click to keep it, Escape to let go. #episode=3 in the address shows it."
    ]
    if len(pictures.strips) < len(scored.buffer.episodes):
        notes.append(
            f"{len(pictures.strips)} of {len(scored.buffer.episodes)} episodes have a film strip on this page."
        )
    controls = render("curves.html", tasks=list(tasks), measures=measures)
    return Section(title="Curves", notes=notes, blocks=(controls, data_block("curve-data", content)))


def _curve(
    scored: ScoredDataset, episode: Episode, task: int, measures: list[str], pictures: Pictures
) -> dict[str, Any]:
    """Returns one episode as data for the page's script. Undefined values are None."""
    ends = np.flatnonzero(scored.of("scored", episode))
    points = max(20, min(CURVE_POINTS, ALL_POINTS // len(scored.buffer.episodes)))
    ends = ends[spread(len(ends), points)] if len(ends) else np.array([episode.length - 1])
    strip, regress = pictures.strips.get(episode.index), scored.regresses.get(episode.index)
    why = pictures.missing.get(episode.index, "No film strip of this episode: there are too many for one page.")
    return {
        "index": episode.index,
        "task": task,
        "success": bool(episode.success),
        "length": episode.length,
        "frames": ends.tolist(),
        **{name: _rounded(scored.of(name, episode)[ends]) for name in measures},
        "regress": None if regress is None else {"start": regress.start, "end": regress.end},
        "facts": _facts(scored, episode),
        "why": "" if strip else why,
        "strip": None if strip is None else {
            "uri": data_uri(strip.jpeg), "frames": strip.frames, "width": strip.width, "height": strip.height
        },
    }  # fmt: skip


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


def _facts(scored: ScoredDataset, episode: Episode) -> str:
    final, reward = scored.of("progress", episode)[-1], scored.of("reward", episode)[-1]
    facts = [f"final progress {_number(final)}", f"trajectory reward {_number(reward)}"]
    weights, regress = scored.weights_of(episode), scored.regresses.get(episode.index)
    if weights is not None:
        facts.append(f"mean weight {weights.mean():.2f}")
    if regress is not None:
        seconds = f"{regress.start / episode.fps:.1f} to {regress.end / episode.fps:.1f} s"
        facts.append(f"largest fall {regress.drop:.3f}, from {seconds} (shaded when pinned)")
    return "; ".join(facts) + "."


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "undefined"


def _falls(scored: ScoredDataset, falls: list[Fall], pictures: Pictures) -> Section:
    title = "Where failures fall back"
    failures = [e for e in scored.buffer.episodes if e.success is False]
    if not failures:
        return Section(title=title, notes=["There is no failure."])
    undefined = sum(e.index not in scored.regresses for e in failures)
    falling = sum(scored.regresses.get(e.index) is not None for e in failures)
    notes = [
        "The largest fall of the step value between two frames of a failure, beside the nearest window (by embedding) "
        "of a success of the same task from another take, and what that success showed as long after.",
        f"{falling} of {len(failures)} failures fall back at all"
        + (f"; {undefined} have no step value" if undefined else "")
        + (f"; the {len(falls)} largest falls are shown." if len(falls) < falling else "."),
    ]
    cards = [_card(scored, fall, pictures) for fall in falls]
    return Section(title=title, notes=notes, blocks=(part("fall_cards", cards),) if falls else ())


def _card(scored: ScoredDataset, fall: Fall, pictures: Pictures) -> dict[str, Any]:
    """Returns one fall as `fall_cards` of parts.html takes it."""
    episode, regress, match = fall.episode, fall.regress, fall.match
    shown = _shown(scored, fall)
    captions = [f"at {regress.start / episode.fps:.1f} s, before", f"at {regress.end / episode.fps:.1f} s, after"]
    if match is not None:
        captions.append(
            f"success {match.episode_index} at {shown[2][1] / episode.fps:.1f} s, distance {match.distance:.3g}"
        )
        captions.append(f"the same success at {shown[3][1] / episode.fps:.1f} s")
    frames = [
        {
            "content": pictures.frames.get(place),
            "missing": pictures.missing.get(place[0], ""),
            "alt": f"episode {place[0]}, {caption}",
            "caption": caption,
        }
        for place, caption in zip(shown, captions, strict=True)
    ]
    return {
        "episode": episode.index,
        "frame": regress.start,
        "drop": f"{regress.drop:.3f}",
        "frames": frames,
        "why": fall.why if match is None else "",
    }


def _strategies(scored: ScoredDataset) -> Section:
    tasks = sorted({e.task for e in scored.buffer.episodes})
    folder = scored.buffer.sidecar / FOLDER
    files = [(folder / name, task) for task, name in file_names(tasks).items() if (folder / name).is_file()]
    title = "Strategy maps"
    if not files:
        return Section(title=title, notes=[f"There are none in {FOLDER}/; srpo-robot score-dataset draws them."])
    notes = ["Whole-episode embeddings of a task on their two principal axes, and the success nearest to each centre."]
    if len(files) < len(tasks):
        notes.append(f"{len(files)} of {len(tasks)} tasks have a map.")
    return Section(
        title=title, notes=notes, pictures=[(shrunk(path), f"strategy map of the task {task}") for path, task in files]
    )


def _weights(scored: ScoredDataset) -> Section:
    title = "Weights of the frames"
    weights = scored.weights
    if weights is None:
        return Section(title=title, notes=[f"There are no weights: {scored.no_weights}"])
    episodes = scored.buffer.episodes
    effective = effective_sample_size(weights)
    highest = int(np.isclose(weights, weights.max()).sum())
    rows = [
        ("what", "value"),
        ("effective sample size", f"{effective:.0f} of {len(weights)} frames ({effective / len(weights):.0%})"),
        ("largest weight", f"{weights.max():.2f}, at {highest} frames"),
        ("weight 0 (undefined)", f"{int((weights == 0).sum())} frames"),
    ]
    by_label = mean_weight_by_label(scored.buffer, weights)
    rows += [(f"mean weight, {name}", f"{mean:.3f}") for name, mean in by_label.items()]
    kind = np.repeat(["success" if e.success else "failure" for e in episodes], [e.length for e in episodes])
    histogram = draw_weights({name: weights[kind == name] for name in ("success", "failure") if (kind == name).any()})
    w = scored.weighting
    source = "the last command that weighed the dataset wrote them" if scored.weighted else "the default weighting"
    note = (
        f"min(exp(A / beta), w_max), scaled to mean 1; {source}: beta {w.beta:g}, w_max {w.w_max:g}, "
        f"horizon {w.horizon}, kappa {w.kappa:g}, baseline {w.baseline}."
    )
    return Section(
        title=title, notes=[note], tables=[rows], pictures=[(histogram, "histogram of the frames' weights by label")]
    )


def _audit(scored: ScoredDataset) -> list[Section]:
    path = scored.buffer.sidecar / AUDIT
    if not path.is_file():
        return []
    try:
        audit = json.loads(path.read_text(encoding="utf-8"))
        verdict = "passed" if audit["passed"] else "failed"
        lines, advice = [str(line) for line in audit["lines"]], [str(line) for line in audit["advice"]]
        changed = _changed(scored, audit.get("origin", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [Section(title="Audit", warnings=(f"{AUDIT} cannot be read ({type(error).__name__}: {error})",))]
    warnings = advice if verdict == "failed" else []
    if changed:
        refresh = f"run: srpo-robot audit {scored.buffer.root}"
        warnings = [f"This audit is of another {' and '.join(changed)} than the score; {refresh}", *warnings]
    block = part("lines", lines)
    return [
        Section(
            title=f"Audit: {verdict}", notes=advice if verdict == "passed" else (), warnings=warnings, blocks=(block,)
        )
    ]


def _changed(scored: ScoredDataset, origin: dict[str, Any]) -> list[str]:
    """Returns the names of the inputs that differ between the audit and the score."""
    current = audit_origin(scored.buffer, scored.provenance)
    return [name for name, value in current.items() if name in origin and origin[name] != value]


def _episodes(scored: ScoredDataset) -> Section:
    rows: list[tuple[str, ...]] = [
        ("episode", "label", "task", "length [s]", "final progress", "reward", "largest fall")
    ]
    for e in scored.buffer.episodes:
        regress = scored.regresses.get(e.index)
        fall = "undefined" if e.index not in scored.regresses else "-" if regress is None else f"{regress.drop:.3f}"
        rows.append(
            (
                part("button", e.index, str(e.index)),
                "success" if e.success else "failure",
                e.task,
                f"{e.length / e.fps:.1f}",
                _number(scored.of("progress", e)[-1]),
                _number(scored.of("reward", e)[-1]),
                fall,
            )
        )
    return Section(title="Episodes", blocks=(part("folded_table", f"All {len(rows) - 1}", rows),))


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
