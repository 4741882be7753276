// Curves of a report. Hovering shows an episode's film strip. A click, Enter or #episode=N pins it.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("curve-data").textContent);
  const WIDTH = 560, HEIGHT = 290, LEFT = 40, RIGHT = 10, TOP = 28, BOTTOM = 34; // [SVG units]
  const REACH = 28; // largest distance from pointer to curve [SVG units]
  const byIndex = new Map(data.episodes.map((episode) => [episode.index, episode]));
  const find = (id) => document.getElementById(id);
  const state = { episode: null, frame: 0, pinned: false, task: "", measure: "progress" };
  let panels = [];

  const visible = () => data.episodes.filter((e) => state.task === "" || e.task === Number(state.task));
  const values = (episode) => episode[state.measure];
  const drawn = (episode) => values(episode).every((value) => value !== null);

  function element(name, attributes, ...children) {
    const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  // Returns the value at a frame: linear between scored windows, constant before the first one.
  function valueAt(episode, frame) {
    const xs = episode.frames, ys = values(episode);
    let low = 0, high = xs.length - 1;
    if (frame <= xs[0]) return ys[0];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= frame) low = middle; else high = middle;
    }
    const share = high === low ? 0 : Math.min(1, (frame - xs[low]) / (xs[high] - xs[low]));
    return ys[low] + share * (ys[high] - ys[low]);
  }

  function drawPanel(success, members, seconds) {
    const x = (s) => LEFT + (s / seconds) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM);
    const kind = success ? "success" : "failure", plural = success ? "successes" : "failures";
    const shown = members.filter(drawn);
    const svg = element("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: "0", role: "application",
      "aria-label": `${data.measures[state.measure]} of ${members.length} ${plural} over time; ` +
        "arrow keys up and down choose an episode, left and right a frame, Escape lets go",
    });
    svg.style.setProperty("--ink", Math.min(0.55, 3.5 / Math.sqrt(shown.length))); // with many curves, each is fainter
    for (const value of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
      svg.append(element("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
    }
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000].find((s) => seconds / s <= 8) || seconds;
    for (let s = 0; s <= seconds * 1.0001; s += step) {
      const label = String(Math.round(s * 10) / 10);
      svg.append(element("text", { class: "tick", x: x(s), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, label));
    }
    const unit = { class: "tick", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" };
    svg.append(element("text", unit, "time [s]"));
    const undefinedOnes = members.length - shown.length;
    const title = `${plural} (${members.length})` + (undefinedOnes ? `, ${undefinedOnes} undefined` : "");
    svg.append(element("text", { class: `title ${kind}`, x: LEFT, y: 16 }, title));
    const lines = new Map(), fall = element("rect", { class: "fall", y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0 });
    svg.append(fall);
    for (const episode of shown) {
      const points = episode.frames.map((f, i) => `${x(f / data.fps).toFixed(1)},${y(values(episode)[i]).toFixed(1)}`);
      const dot = points.length === 1 ? ` h0.01` : "";
      const path = element("path", { class: `curve ${kind}`, d: `M${points.join("L")}${dot}`, "data-curve": episode.index });
      svg.append(path);
      lines.set(episode.index, path);
    }
    const marker = element("circle", { class: "marker", r: 5, cx: -99, cy: -99 });
    svg.append(marker);
    return { svg, success, shown, lines, marker, fall, x, y, seconds };
  }

  function draw() {
    const members = visible();
    const seconds = Math.max(...members.map((e) => (e.length - 1) / data.fps), 1 / data.fps);
    panels = [true, false]
      .map((success) => [success, members.filter((e) => e.success === success)])
      .filter(([, episodes]) => episodes.length)
      .map(([success, episodes]) => drawPanel(success, episodes, seconds));
    find("panels").replaceChildren(...panels.map((panel) => panel.svg));
    panels.forEach(listen);
    mark();
  }

  function under(panel, event) {
    const box = panel.svg.getBoundingClientRect(), scale = WIDTH / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    const seconds = ((px - LEFT) / (WIDTH - LEFT - RIGHT)) * panel.seconds;
    let best = null, least = REACH;
    for (const episode of panel.shown) {
      const frame = Math.min(Math.max(Math.round(seconds * data.fps), 0), episode.length - 1);
      const dx = panel.x(frame / data.fps) - px, dy = panel.y(valueAt(episode, frame)) - py;
      const distance = Math.hypot(dx, dy);
      if (distance < least) { least = distance; best = { episode, frame }; }
    }
    return { best, frame: Math.max(Math.round(seconds * data.fps), 0) };
  }

  function listen(panel) {
    panel.svg.addEventListener("pointermove", (event) => {
      const { best, frame } = under(panel, event);
      if (!state.pinned) {
        if (best) show(best.episode, best.frame);
      } else if (state.episode.success === panel.success) show(state.episode, Math.min(frame, state.episode.length - 1));
    });
    panel.svg.addEventListener("click", (event) => {
      const { best } = under(panel, event);
      if (best) pin(best.episode, best.frame); else release();
    });
    panel.svg.addEventListener("keydown", (event) => {
      const shown = panel.shown, at = shown.indexOf(state.episode);
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") release();
      else if (step && shown.length) {
        const next = shown[at < 0 ? 0 : (at + step + shown.length) % shown.length];
        pin(next, next.frames[0]);
      } else if (move && state.episode) show(state.episode, state.frame + move * Math.ceil(state.episode.length / 24));
      else if (event.key === "Enter" && state.episode) pin(state.episode, state.frame);
      else return;
      event.preventDefault();
    });
  }

  function pin(episode, frame) {
    if (state.task !== "" && episode.task !== Number(state.task)) {
      state.task = find("task").value = "";
      draw();
    }
    state.pinned = true;
    show(episode, frame);
    history.replaceState(null, "", `#episode=${episode.index}`);
  }

  function release() {
    state.pinned = false;
    history.replaceState(null, "", location.pathname + location.search);
    mark();
    describe();
  }

  function show(episode, frame) {
    const other = state.episode !== episode;
    state.episode = episode;
    state.frame = Math.min(Math.max(frame, 0), episode.length - 1);
    if (other) strip();
    mark();
    describe();
  }

  // A film strip is one picture of all frames side by side. Each cell shows its part of it.
  function cellStyle(film, place) {
    const across = film.frames.length > 1 ? (place / (film.frames.length - 1)) * 100 : 0;
    return `background-size:${film.frames.length * 100}% 100%;background-position:${across}% 0;` +
      `aspect-ratio:${film.width}/${film.height}`;
  }

  function strip() {
    const film = state.episode.strip;
    find("film").style.setProperty("--film", film ? `url(${film.uri})` : "none");
    find("strip").replaceChildren(...(film ? film.frames : []).map((frame, place) => {
      const cell = element("div", { class: "cell", style: cellStyle(film, place), "data-frame": frame });
      cell.addEventListener("click", () => pin(state.episode, frame));
      return cell;
    }));
    find("large").setAttribute("style", film ? cellStyle(film, 0) : "");
    find("no-strip").textContent = film ? "" : state.episode.why;
  }

  function mark() {
    const episode = state.episode;
    for (const panel of panels) {
      const mine = episode !== null && panel.lines.has(episode.index);
      panel.svg.classList.toggle("pinned", state.pinned);
      if (mine) panel.marker.before(panel.lines.get(episode.index)); // in front of the others
      for (const [index, line] of panel.lines) line.classList.toggle("on", mine && index === episode.index);
      panel.marker.setAttribute("cx", mine ? panel.x(state.frame / data.fps) : -99);
      panel.marker.setAttribute("cy", mine ? panel.y(valueAt(episode, state.frame)) : -99);
      const fall = mine && state.pinned ? episode.regress : null;
      panel.fall.setAttribute("x", fall ? panel.x(fall.start / data.fps) : 0);
      panel.fall.setAttribute("width", fall ? panel.x(fall.end / data.fps) - panel.x(fall.start / data.fps) : 0);
    }
    if (!episode || !episode.strip) return;
    const frames = episode.strip.frames;
    const distance = (place) => Math.abs(frames[place] - state.frame);
    const nearest = frames.reduce((best, _, place) => (distance(place) < distance(best) ? place : best), 0);
    [...find("strip").children].forEach((cell, place) => cell.classList.toggle("at", place === nearest));
    find("large").setAttribute("style", cellStyle(episode.strip, nearest));
    find("large").setAttribute("aria-label", `frame ${frames[nearest]} of episode ${episode.index}`);
  }

  function describe() {
    const episode = state.episode;
    if (!episode) return;
    find("details").classList.toggle("pinned", state.pinned);
    const kind = episode.success ? "success" : "failure";
    find("details-title").textContent = `Episode ${episode.index}, ${kind}${state.pinned ? " (pinned)" : ""}`;
    const seconds = (state.frame / data.fps).toFixed(1);
    const value = drawn(episode) ? valueAt(episode, state.frame).toFixed(3) : "undefined";
    find("details-frame").textContent =
      `frame ${state.frame} of ${episode.length}, ${seconds} s: ${data.measures[state.measure]} ${value}`;
    find("details-task").textContent = data.tasks[episode.task];
    find("details-facts").textContent = episode.facts;
  }

  function follow() {
    const request = new URLSearchParams(location.hash.slice(1));
    const episode = byIndex.get(Number(request.get("episode")));
    if (request.has("episode") && episode) pin(episode, request.has("frame") ? Number(request.get("frame")) || 0 : episode.frames[0]);
  }

  find("task").addEventListener("change", (event) => {
    state.task = event.target.value;
    if (state.pinned && !visible().includes(state.episode)) release();
    draw();
  });
  find("measure").addEventListener("change", (event) => { state.measure = event.target.value; draw(); describe(); });
  for (const button of document.querySelectorAll("button[data-episode]")) {
    button.addEventListener("click", () => {
      const episode = byIndex.get(Number(button.dataset.episode));
      pin(episode, Number(button.dataset.frame ?? episode.frames[0]));
      find("curves").scrollIntoView({ block: "start" });
    });
  }
  addEventListener("hashchange", follow);
  draw();
  follow();
})();
