"""The page of a scored dataset: what was scored, every curve with its frames, where failures fall back, the weights.

Everything comes from tables on disk and from the recorded videos; nothing is scored or embedded here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.awr.weighting import mean_weight_by_label
from srpo_robot.awr.weights import effective_sample_size
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import UndecodableFrame
from srpo_robot.progress.encoder import CAUTIONS
from srpo_robot.progress.evidence.audit import FILE as AUDIT
from srpo_robot.progress.pipeline import TABLE as PROGRESS
from srpo_robot.records import Episode
from srpo_robot.report.dataset import Fall, ScoredDataset, matched, read_scored, worst_falls
from srpo_robot.report.figures import draw_weights
from srpo_robot.report.frames import jpeg, resized, shrunk, spread, tiled
from srpo_robot.report.page import Html, Section, data_block, data_uri, picture, table, text, write_page
from srpo_robot.report.strategy_figure import FOLDER, file_names

STRIP_FRAMES, STRIP_HEIGHT = 24, 96  # frames of a film strip, [pixels]
FALL_HEIGHT = 150  # [pixels]
MAX_STRIPS = 200  # episodes with a film strip
MAX_STRIP_BYTES = 14_000_000  # of all strips; a third more once written as text
MAX_FALLS = 48
MAX_TASKS = 50  # rows of the table of tasks
CURVE_POINTS, ALL_POINTS = 160, 200_000  # of one curve, of all of them (but a curve has 20)


def make_report(buffer: Buffer, out: Path, on_episode: Callable[[int, int], None] | None = None) -> Path:
    """Write the page of a scored buffer to `out`: one file that needs no network; returns its path.

    Args:
        on_episode: called after each decoded episode with how many are done, and of how many.

    Raises:
        StaleTable: the dataset was not scored, or has changed since; names the command.
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


# --- pictures: every episode that is shown is decoded once


@dataclass(frozen=True, eq=False)
class FilmStrip:
    """Frames of one episode side by side: their numbers, one JPEG, and the size of one of them [pixels]."""

    frames: list[int]
    jpeg: bytes
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was decoded: strips by episode_index, frames (JPEG) by (episode_index, frame), why an episode has none."""

    strips: dict[int, FilmStrip]
    frames: dict[tuple[int, int], bytes]
    missing: dict[int, str]


def decode(scored: ScoredDataset, falls: list[Fall], on_episode: Callable[[int, int], None] | None = None) -> Pictures:
    """The film strips of at most `MAX_STRIPS` episodes, and the frames that `falls` show. A broken video is said."""
    wanted: dict[int, set[int]] = {}
    for fall in falls:
        for index, frame in _shown(scored, fall):
            wanted.setdefault(index, set()).add(frame)
    chosen = with_strips([e.index for e in scored.buffer.episodes], [fall.episode.index for fall in falls], MAX_STRIPS)
    todo = [e for e in scored.buffer.episodes if e.index in chosen or e.index in wanted]
    found = Pictures({}, {}, {})
    size = 0
    for done, episode in enumerate(todo, start=1):
        try:
            frames = scored.buffer.frames(episode, scored.camera)
        except UndecodableFrame as error:
            found.missing[episode.index] = str(error).split(";")[0]
        else:
            found.frames.update(
                {(episode.index, t): jpeg(resized(frames[t], FALL_HEIGHT)) for t in wanted.get(episode.index, ())}
            )
            if episode.index in chosen and size < MAX_STRIP_BYTES:
                found.strips[episode.index] = _strip(frames)
                size += len(found.strips[episode.index].jpeg)
        if on_episode is not None:
            on_episode(done, len(todo))
    return found


def with_strips(episodes: list[int], first: list[int], count: int) -> set[int]:
    """Which episodes get a film strip: all if `count` allows, otherwise `first`, then the others evenly."""
    chosen = first[:count]
    others = [index for index in episodes if index not in set(chosen)]
    room = count - len(chosen)
    return {*chosen, *(others[i] for i in (spread(len(others), room) if others and room else ()))}


def _strip(frames: np.ndarray) -> FilmStrip:
    picked = spread(len(frames), STRIP_FRAMES)
    small = [resized(frames[t], STRIP_HEIGHT) for t in picked]
    return FilmStrip(picked.tolist(), jpeg(tiled(small, len(small), gap=0)), small[0].shape[1], STRIP_HEIGHT)


def _shown(scored: ScoredDataset, fall: Fall) -> list[tuple[int, int]]:
    """(episode_index, frame) of a fall's pictures: its start and end; the success there, and as long after."""
    regress, match = fall.regress, fall.match
    own = [(fall.episode.index, regress.start), (fall.episode.index, regress.end)]
    if match is None:
        return own
    last = scored.buffer.episodes[match.episode_index].length - 1
    later = min(match.frame + regress.end - regress.start, last)
    return [*own, (match.episode_index, match.frame), (match.episode_index, later)]


# --- sections


def _summary(scored: ScoredDataset) -> Section:
    buffer, settings = scored.buffer, scored.settings
    good = sum(e.success is True for e in buffer.episodes)
    windows, rules = settings.windows, settings.rules
    undefined = [e.index for e in buffer.episodes if not np.isfinite(scored.of("progress", e)).all()]
    written = datetime.fromtimestamp((buffer.sidecar / PROGRESS).stat().st_mtime, UTC)
    facts = [
        ("episodes", f"{len(buffer.episodes)}: {good} successes, {len(buffer.episodes) - good} failures"),
        ("frames", f"{buffer.total_frames} at {buffer.fps:g} per second"),
        ("tasks", str(len({e.task for e in buffer.episodes}))),
        ("cameras", ", ".join(name.removeprefix("observation.images.") for name in settings.cameras)),
        ("encoder", f"{settings.encoder} ({scored.progress.metadata['encoder']})"),
        ("windows", f"{windows}, {windows.shape}, from frame {windows.min_window}"),
        ("profile", f"{rules.profile}; references {rules.reference_name}; step value {rules.value_name}"),
        ("undefined progress", f"{len(undefined)} episodes" + (f": {_listed(undefined)}" if undefined else "")),
        ("scored", f"{written:%Y-%m-%d %H:%M} UTC (the table's file)"),
    ]  # fmt: skip
    if settings.reference:
        facts.append(("references from", settings.reference))
    notes = []
    if rules.profile != "loo":
        notes.append(
            f"In the profile {rules.profile} a success is measured against its own end, so it ends at 1 by "
            "construction: that successes end higher than failures says nothing here."
        )
    rows, note = _task_rows(scored)
    listed = "".join(f"<dt>{text(what)}</dt><dd>{text(value)}</dd>" for what, value in facts)
    warnings = [CAUTIONS[settings.encoder]] if settings.encoder in CAUTIONS else []
    tasks = table(rows)
    if len(rows) > 13:
        tasks = Html(f"<details><summary>Tasks</summary>{tasks}</details>")
    blocks = (Html(f'<dl class="facts">{listed}</dl>'), tasks)
    return Section("Summary", [*notes, *note], warnings=warnings, blocks=blocks)


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
    return f"{finals.mean():.3f}" if len(finals) else "-"


def _curves(scored: ScoredDataset, pictures: Pictures) -> Section:
    tasks = {task: i for i, task in enumerate(dict.fromkeys(e.task for e in scored.buffer.episodes))}
    measures = {"progress": "progress"}
    value = scored.settings.rules.value_name
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
    left = len(scored.buffer.episodes) - len(pictures.strips)
    if left:
        notes.append(
            f"{len(pictures.strips)} of {len(scored.buffer.episodes)} episodes have a film strip on this page."
        )
    return Section("Curves", notes, blocks=(_controls(list(tasks), measures), data_block("curve-data", content)))


def _curve(
    scored: ScoredDataset, episode: Episode, task: int, measures: list[str], pictures: Pictures
) -> dict[str, Any]:
    """One episode for the page's script; None stands for undefined."""
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


def _controls(tasks: list[str], measures: dict[str, str]) -> Html:
    options = "".join(
        f'<option value="{i}">{text(task or "(no instruction)")}</option>' for i, task in enumerate(tasks)
    )
    kinds = "".join(f'<option value="{name}">{text(label)}</option>' for name, label in measures.items())
    return Html(
        '<noscript><p class="warning">The curves need JavaScript; curves.png beside the tables shows them too.</p>'
        '</noscript>\n<div id="curves"></div>\n'
        f'<div class="controls"><label{_hidden(len(tasks) < 2)}>Task '
        f'<select id="task"><option value="">all tasks</option>{options}</select></label>'
        f'<label{_hidden(len(measures) < 2)}>Curve <select id="measure">{kinds}</select></label></div>\n'
        '<div id="panels" class="panels"></div>\n'
        '<div id="details" class="details" aria-live="polite"><h3 id="details-title">No episode chosen</h3>'
        '<p id="details-task" class="note"></p><p id="details-frame"></p><p id="details-facts"></p>'
        '<p id="no-strip" class="note"></p>'
        '<div id="film" class="film"><div id="large" class="large" role="img"></div><div id="strip" class="strip">'
        "</div></div></div>"
    )


def _hidden(yes: bool) -> str:
    return " hidden" if yes else ""


def _falls(scored: ScoredDataset, falls: list[Fall], pictures: Pictures) -> Section:
    title = "Where failures fall back"
    failures = [e for e in scored.buffer.episodes if e.success is False]
    if not failures:
        return Section(title, ["There is no failure."])
    undefined = sum(e.index not in scored.regresses for e in failures)
    falling = sum(scored.regresses.get(e.index) is not None for e in failures)
    notes = [
        "The largest fall of the step value between two frames of a failure, beside the nearest window (by embedding) "
        "of a success of the same task from another take, and what that success showed as long after.",
        f"{falling} of {len(failures)} failures fall back at all"
        + (f"; {undefined} have no step value" if undefined else "")
        + (f"; the {len(falls)} largest falls are shown." if len(falls) < falling else "."),
    ]
    cards = "\n".join(_card(scored, fall, pictures) for fall in falls)
    return Section(title, notes, blocks=(Html(f'<div class="falls">{cards}</div>'),) if falls else ())


def _card(scored: ScoredDataset, fall: Fall, pictures: Pictures) -> str:
    episode, regress, match = fall.episode, fall.regress, fall.match
    shown = _shown(scored, fall)
    captions = [f"at {regress.start / episode.fps:.1f} s, before", f"at {regress.end / episode.fps:.1f} s, after"]
    if match is not None:
        captions.append(
            f"success {match.episode_index} at {shown[2][1] / episode.fps:.1f} s, distance {match.distance:.3g}"
        )
        captions.append(f"the same success at {shown[3][1] / episode.fps:.1f} s")
    figures = "".join(_framed(place, words, pictures) for place, words in zip(shown, captions, strict=True))
    button = _button(episode, f"Episode {episode.index}", regress.start)
    why = f'<p class="note">{text(fall.why)}</p>' if match is None else ""
    title = f"<h3>{button} falls by {regress.drop:.3f}</h3>"
    return f'<div class="fall-card">{title}<div class="frames">{figures}</div>{why}</div>'


def _button(episode: Episode, words: str, frame: int | None = None) -> Html:
    """Pins `episode` in the curves, at `frame` or at its first window."""
    at = "" if frame is None else f' data-frame="{frame}"'
    return Html(f'<button type="button" data-episode="{episode.index}"{at}>{text(words)}</button>')


def _framed(place: tuple[int, int], words: str, pictures: Pictures) -> str:
    content = pictures.frames.get(place)
    image = (
        text(pictures.missing.get(place[0], ""))
        if content is None
        else picture(content, f"episode {place[0]}, {words}")
    )
    return f"<figure>{image}<figcaption>{text(words)}</figcaption></figure>"


def _strategies(scored: ScoredDataset) -> Section:
    tasks = sorted({e.task for e in scored.buffer.episodes})
    folder = scored.buffer.sidecar / FOLDER
    files = [(folder / name, task) for task, name in file_names(tasks).items() if (folder / name).is_file()]
    title = "Strategy maps"
    if not files:
        return Section(title, [f"There are none in {FOLDER}/; srpo-robot score-dataset draws them."])
    notes = ["Whole-episode embeddings of a task on their two principal axes, and the success nearest to each centre."]
    if len(files) < len(tasks):
        notes.append(f"{len(files)} of {len(tasks)} tasks have a map.")
    return Section(title, notes, pictures=[(shrunk(path), f"strategy map of the task {task}") for path, task in files])


def _weights(scored: ScoredDataset) -> Section:
    title = "Weights of the frames"
    weights = scored.weights
    if weights is None:
        return Section(title, [f"There are no weights: {scored.no_weights}"])
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
    drawn = draw_weights({name: weights[kind == name] for name in ("success", "failure") if (kind == name).any()})
    w = scored.weighting
    source = "the last command that weighed the dataset wrote them" if scored.weighted else "the default weighting"
    note = (
        f"min(exp(A / beta), w_max), scaled to mean 1; {source}: beta {w.beta:g}, w_max {w.w_max:g}, "
        f"horizon {w.horizon}, kappa {w.kappa:g}, baseline {w.baseline}."
    )
    return Section(title, [note], [rows], [(drawn, "histogram of the frames' weights by label")])


def _audit(scored: ScoredDataset) -> list[Section]:
    path = scored.buffer.sidecar / AUDIT
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        verdict = "passed" if found["passed"] else "failed"
        lines, advice = [str(line) for line in found["lines"]], [str(line) for line in found["advice"]]
        changed = _changed(scored, found.get("origin", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [Section("Audit", warnings=(f"{AUDIT} cannot be read ({type(error).__name__}: {error})",))]
    warnings = advice if verdict == "failed" else []
    if changed:
        refresh = f"run: srpo-robot audit {scored.buffer.root}"
        warnings = [f"This audit is of another {' and '.join(changed)} than the score; {refresh}", *warnings]
    block = Html(f"<pre>{text(chr(10).join(lines))}</pre>")
    return [Section(f"Audit: {verdict}", advice if verdict == "passed" else (), warnings=warnings, blocks=(block,))]


def _changed(scored: ScoredDataset, origin: dict[str, Any]) -> list[str]:
    """What an audit says it is of and is not that of the score."""
    own = {
        "dataset": scored.buffer.fingerprint,
        "labels": scored.buffer.labels_fingerprint,
        "encoder": scored.settings.encoder,
        "cameras": list(scored.settings.cameras),
        "windows": asdict(scored.settings.windows),
    }
    return [name for name, value in own.items() if name in origin and origin[name] != value]


def _episodes(scored: ScoredDataset) -> Section:
    rows: list[tuple[str, ...]] = [
        ("episode", "label", "task", "length [s]", "final progress", "reward", "largest fall")
    ]
    for e in scored.buffer.episodes:
        regress = scored.regresses.get(e.index)
        fall = "undefined" if e.index not in scored.regresses else "-" if regress is None else f"{regress.drop:.3f}"
        rows.append(
            (
                _button(e, str(e.index)),
                "success" if e.success else "failure",
                e.task,
                f"{e.length / e.fps:.1f}",
                _number(scored.of("progress", e)[-1]),
                _number(scored.of("reward", e)[-1]),
                fall,
            )
        )
    return Section(
        "Episodes", blocks=(Html(f"<details><summary>All {len(rows) - 1}</summary>{table(rows)}</details>"),)
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
