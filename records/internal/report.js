// SPDX-License-Identifier: Apache-2.0
// Draws the charts of a report and filters its responses. The data stands in the page as JSON: columns of
// numbers by metric, null where a step has no value, "NaN" and the like where it was not finite.
"use strict";
(() => {
  const root = document.documentElement;
  const themeButton = document.getElementById("theme");
  const setTheme = (name) => {
    root.dataset.theme = name;
    themeButton.textContent = name === "dark" ? "Light" : "Dark";
  };
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  themeButton.onclick = () => setTheme(root.dataset.theme === "dark" ? "light" : "dark");

  // ---- responses
  const stepSelect = document.getElementById("rollout-step");
  if (stepSelect) {
    const tagSelect = document.getElementById("rollout-tag");
    const articles = [...document.querySelectorAll("article.rollout")];
    const filter = () => {
      let shown = 0;
      for (const article of articles) {
        const fits = (!stepSelect.value || article.dataset.step === stepSelect.value) &&
            (!tagSelect.value || article.dataset.tags.split(" ").includes(tagSelect.value));
        article.hidden = !fits;
        shown += fits;
      }
      document.getElementById("rollout-count").textContent = `${shown} of ${articles.length} shown`;
    };
    stepSelect.onchange = tagSelect.onchange = filter;
    filter();
  }

  // ---- charts
  const holder = document.getElementById("charts");
  if (!holder) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const steps = data.steps;
  const firstTime = data.times.map(Number).find(Number.isFinite);
  const hours = data.times.map((time) => (Number(time) - firstTime) / 3600);
  const columns = new Map(Object.entries(data.metrics));
  for (const column of columns.values()) {
    column.values = column.values.map((value) => (value === null ? null : Number(value)));
  }
  const tip = document.getElementById("tip");
  const settings = {smoothing: 0, across: "step"};
  const used = new Set();

  // One series of a chart: metric, label, and the metrics of the band around it, if any.
  const series = (name, label, low, high) => ({name, label, low, high});
  const matching = (pattern, label) => [...columns.keys()].filter((name) => pattern.test(name))
      .map((name) => series(name, name.replace(pattern, label)));

  const evals = () => matching(/^val-core\/(.+)\/acc\/((?:mean|maj|best)@\d+)$/, "$1 $2")
      .map((s) => ({...s, low: s.name + "/low", high: s.name + "/high"}));
  const phases = () => {
    const known = ["gen", "load_rollouts", "reward", "exchange", "adv", "ref", "update_actor",
                   "update_weights", "hash_weights", "testing", "save_checkpoint", "dump_rollouts",
                   "write_metrics", "other"].map((name) => "timing_s/" + name);
    const all = [...columns.keys()].filter((name) => name.startsWith("timing_s/") && name !== "timing_s/step");
    all.sort((a, b) => (known.indexOf(a) + 99) % 99 - (known.indexOf(b) + 99) % 99);
    const words = {gen: "rollout", ref: "reference log-probs", adv: "advantages", update_actor: "update",
                   update_weights: "weights to the rollout", testing: "evaluation", save_checkpoint: "checkpoint", exchange: "ranks exchange and wait"};
    return all.map((name) => name.slice("timing_s/".length))
        .map((phase) => series("timing_s/" + phase, words[phase] ?? phase.replaceAll("_", " ")));
  };
  const groups = [
    {title: "Retrieval", charts: [
      {title: "Exact match", series: [series("val/harr/em", "held-out questions"), series("harr/em", "sampled lists")], points: true},
      {title: "F1", series: [series("val/harr/f1", "held-out questions"), series("harr/f1", "sampled lists")], points: true},
      {title: "Reward of a trajectory", series: [series("harr/reward", "mean")]},
      {title: "Searches that find the passage", series: [series("val/harr/recall", "held-out questions"), series("val/harr/recall_elliptical", "held out, in need of the history"), series("harr/recall", "sampled lists")], points: true},
      {title: "Effective documents", series: [series("harr/effective_documents", "exp(entropy)")]},
      {title: "Questions with a signal", series: [series("harr/mixed_groups", "fraction")]},
    ]},
    {title: "Federated", charts: [
      {title: "Accuracy on held-out rows", series: [series("federated/accuracy", "global model")], points: true},
      {title: "Loss of the model", series: [series("federated/test_loss", "held-out rows"), series("federated/train_loss", "clients, in training")]},
      {title: "Weights of clients", series: [series("federated/weights/max", "largest", "federated/weights/min", "federated/weights/max")], band: "smallest to largest"},
      {title: "Effective clients", series: [series("federated/weights/effective_clients", "(sum w)² / sum w²"), series("federated/updates", "updates")]},
      {title: "Scores of clients", series: [series("federated/score/median", "median", "federated/score/p25", "federated/score/p75"), series("federated/score/min", "least"), series("federated/score/max", "largest")], band: "quartiles"},
      {title: "Weight of each client", series: matching(/^federated\/client\/(.+)\/weight$/, "client $1")},
      {title: "Score of each client", series: matching(/^federated\/client\/(.+)\/score$/, "client $1")},
      {title: "Reward of each client", series: matching(/^federated\/client\/(.+)\/reward$/, "client $1")},
      {title: "FLood's weight of flagged samples", series: [series("federated/flood_weight", "W(t)")], exact: true},
      {title: "Norms", series: [series("federated/update_norm", "mean update"), series("federated/step_norm", "server's step")]},
      {title: "Missing updates", series: [series("federated/dropped", "dropped out"), series("federated/late", "late"), series("federated/refused", "refused")]},
      {title: "Staleness", series: [series("federated/staleness", "mean, in versions")]},
      {title: "Simulated time", series: [series("federated/clock_s", "seconds")]},
    ]},
    {title: "Learning", charts: [
      {title: "Reward", series: [series("critic/rewards/mean", "mean", "critic/rewards/min", "critic/rewards/max")], band: "least to largest"},
      {title: "Accuracy in evaluation", series: evals(), band: "95 % interval", points: true},
      {title: "Parts of the reward", series: matching(/^reward\/(.+)\/mean$/, "$1")},
      {title: "Score before shaping", series: [series("critic/score/mean", "mean", "critic/score/min", "critic/score/max")], band: "least to largest"},
      {title: "Supervised loss", series: [series("train/loss", "training"), series("val/loss", "held out")]},
    ]},
    {title: "Responses", charts: [
      {title: "Response length", series: [series("response_length/mean", "mean", "response_length/min", "response_length/max")], band: "shortest to longest"},
      {title: "Cut off by length", series: [series("rollout/truncated_fraction", "truncated"), series("response_length/clip_ratio", "as long as allowed")]},
      {title: "Zero-variance groups", series: [series("rollout/zero_variance_group_fraction", "groups whose rewards are all equal")]},
      {title: "Failed checks", series: [...matching(/^reward\/(.+)\/failed_fraction$/, "$1"), series("reward/skipped_fraction", "left out")]},
    ]},
    {title: "Optimisation", charts: [
      {title: "Policy-gradient loss", series: [series("actor/pg_loss", "loss")], hint: "near 0 is as it should be",
       note: "Near 0 is as it should be: on the first update after a rollout the ratios are 1 and the advantages of a group add up to 0."},
      {title: "Entropy", series: [series("actor/entropy", "entropy")]},
      {title: "Gradient norm", series: [series("actor/grad_norm", "RL"), series("train/grad_norm", "supervised")]},
      {title: "KL divergence", series: [series("actor/ppo_kl", "old to new policy"), series("actor/kl_loss", "to the initial model")]},
      {title: "Clipped tokens", series: [series("actor/pg_clipfrac", "clipped"), series("actor/pg_clipfrac_lower", "dual clip")]},
      {title: "Learning rate", series: [series("actor/lr", "RL"), series("train/lr", "supervised")], exact: true},
      {title: "Rollout/trainer mismatch", series: [series("mismatch/max_abs_logprob", "largest log-prob difference")], exact: true},
    ]},
    {title: "Speed", charts: [
      {title: "Time of a step by phase", series: phases(), stack: "timing_s/step", wide: true},
      {title: "Tokens per second", series: [series("perf/throughput", "training, per rank"), series("rollout/tokens_per_s", "rollout")]},
      {title: "Imbalance of ranks", series: [series("perf/imbalance/gen", "rollout"), series("perf/imbalance/update_actor", "update")], hint: "slowest rank over the mean; 1 is even"},
      {title: "Waiting", series: [series("perf/rank_idle_fraction", "ranks for the slowest"), series("perf/tail_idle_fraction", "batch places for the longest response")], hint: "share of the time"},
      {title: "Speed of the longest response", series: [series("rollout/longest_tokens_per_s", "tokens/s")], hint: "a rollout cannot end before it"},
      {title: "Memory", series: [series("perf/cpu_memory_used_gb", "resident"), series("perf/cpu_memory_peak_gb", "peak")], exact: true},
    ]},
  ];

  const isNumber = (value) => value !== null && Number.isFinite(value);
  const valuesOf = (name) => columns.get(name)?.values;

  const format = (value) => {
    if (value === null || value === undefined) return "–";
    if (!Number.isFinite(value)) return String(value);
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-3 || size >= 1e9) return value.toExponential(2);
    if (size >= 1e6) return (value / 1e6).toFixed(2) + "M";
    if (size >= 1e4) return (value / 1e3).toFixed(1) + "k";
    return String(Number(value.toPrecision(4)));
  };

  // As short as a tick can be: 1e-9, 0.25, 20k.
  const formatTick = (value) => {
    const size = Math.abs(value);
    if (size === 0 || (size >= 1e-3 && size < 1e4)) return String(Number(value.toPrecision(6)));
    if (size >= 1e4 && size < 1e9) return size < 1e6 ? Number((value / 1e3).toPrecision(4)) + "k" : Number((value / 1e6).toPrecision(4)) + "M";
    return Number(value.toPrecision(3)).toExponential();
  };

  // Exponential mean with the start corrected, over the finite values.
  const smooth = (values) => {
    const keep = settings.smoothing;
    if (keep === 0) return values;
    let mean = 0, weight = 0;
    return values.map((value) => {
      if (!isNumber(value)) return value;
      mean = keep * mean + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return mean / weight;
    });
  };

  const niceTicks = (low, high, count) => {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 2.5, 5, 10].find((u) => u * power >= rough * 0.999) * power;
    const ticks = [];
    for (let i = Math.ceil(low / unit - 1e-9); i * unit <= high + unit * 1e-9; ++i) {
      ticks.push(Number((i * unit).toPrecision(12)));
    }
    return ticks;
  };

  const svgElement = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent?.append(element);
    return element;
  };
  const element = (name, className, text, parent) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    parent?.append(node);
    return node;
  };

  const charts = [];
  let crossIndex = null;

  class Chart {
    constructor(spec, parent) {
      this.spec = spec;
      this.isLog = false;
      this.card = element("div", "chart" + (spec.wide ? " wide" : ""), undefined, parent);
      const head = element("div", "head", undefined, this.card);
      element("span", "title", spec.title, head);
      const about = spec.series.map((s) => columns.get(s.name)).find((c) => c.unit);
      element("span", "unit", about ? about.unit : "", head);
      this.last = element("span", "last", "", head);
      const all = spec.series.flatMap((s) => valuesOf(s.name)).filter(isNumber);
      if (!spec.stack && all.length > 1 && all.every((v) => v > 0)) {
        const button = element("button", "", "log", head);
        button.type = "button";
        button.title = "logarithmic axis";
        button.setAttribute("aria-pressed", "false");
        button.onclick = () => {
          this.isLog = !this.isLog;
          button.setAttribute("aria-pressed", this.isLog);
          this.draw();
        };
      }
      this.legend = element("div", "legend", undefined, this.card);
      if (spec.series.length > 1 || spec.stack) {
        spec.series.forEach((s, i) => {
          element("span", "", s.label, this.legend).style.setProperty("--k", this.color(i));
        });
      } else {
        const hasBand = spec.band && valuesOf(spec.series[0].low);
        this.legend.textContent = hasBand ? `${spec.series[0].label}; the band is ${spec.band}` : spec.hint ?? spec.series[0].name;
      }
      this.svg = svgElement("svg", {role: "img", "aria-label": spec.title}, this.card);
      this.svg.addEventListener("pointermove", (event) => this.hover(event));
      this.svg.addEventListener("pointerleave", () => this.leave());
      this.rows = steps.map((_, i) => i).filter((i) => spec.series.some((s) => valuesOf(s.name)[i] !== null));
      new ResizeObserver(() => this.draw()).observe(this.card);
    }

    color(i) { return i < 8 ? `var(--c${i})` : "var(--other)"; }
    xs() { return settings.across === "step" ? steps : hours; }

    layout() {
      const width = Math.max(this.card.clientWidth - 24, 120);
      const height = this.spec.wide ? 240 : 178;
      return {width, height, left: 46, right: 10, top: 8, bottom: 32};
    }

    // The curves to draw: raw and smoothed values, the band's ends, or the layers of a stack.
    curves() {
      if (!this.spec.stack) {
        return this.spec.series.map((s, i) => {
          const raw = valuesOf(s.name);
          return {label: s.label, color: this.color(i), raw, line: this.spec.points || this.spec.exact ? raw : smooth(raw),
                  low: s.low && valuesOf(s.low), high: s.high && valuesOf(s.high)};
        });
      }
      const base = steps.map(() => 0);
      return this.spec.series.map((s, i) => {
        const raw = valuesOf(s.name);
        const line = smooth(raw);
        const low = [...base];
        line.forEach((value, row) => { base[row] += isNumber(value) ? Math.max(value, 0) : 0; });
        return {label: s.label, color: this.color(i), raw, line, low, high: [...base]};
      });
    }

    domain(curves) {
      let low = Infinity, high = -Infinity;
      const take = (values) => {
        for (const value of values) {
          if (!isNumber(value) || (this.isLog && value <= 0)) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
        }
      };
      for (const curve of curves) {
        if (!this.spec.stack) take(curve.raw);
        if (curve.low && curve.high) { take(curve.low); take(curve.high); }
      }
      if (low > high) return [0, 1];
      if (this.isLog) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
      if (this.spec.stack) return [0, high * 1.04 || 1];
      if (low === high) return low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
      const room = (high - low) * 0.06;
      return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
    }

    draw() {
      const box = this.layout();
      if (box.width === this.drawnWidth && this.drawnKey === JSON.stringify([settings, this.isLog])) return;
      this.drawnWidth = box.width;
      this.drawnKey = JSON.stringify([settings, this.isLog]);
      this.svg.replaceChildren();
      this.svg.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
      this.svg.setAttribute("height", box.height);
      const curves = this.shown = this.curves();
      const xs = this.xs();
      const seen = this.rows.map((i) => xs[i]).filter(Number.isFinite);
      let x0 = Math.min(...seen), x1 = Math.max(...seen);
      if (!(x0 < x1)) { x0 -= 0.5; x1 += 0.5; }
      const [y0, y1] = this.domain(curves);
      const scale = this.isLog ? Math.log10 : (v) => v;
      const x = this.x = (v) => box.left + (v - x0) / (x1 - x0) * (box.width - box.left - box.right);
      const y = this.y = (v) => box.top + (scale(y1) - scale(v)) / (scale(y1) - scale(y0)) * (box.height - box.top - box.bottom);
      this.drawAxes(box, x0, x1, y0, y1);
      curves.forEach((curve) => this.drawCurve(curve, box));
      this.cross = svgElement("g", {}, this.svg);
      const lastRow = this.rows.at(-1);
      const main = this.spec.stack ? valuesOf(this.spec.stack) : curves[0].line;
      this.last.textContent = curves.length > 1 && !this.spec.stack ? "" : format(main?.[lastRow]);
      if (crossIndex !== null) this.showCross(crossIndex);
    }

    drawAxes(box, x0, x1, y0, y1) {
      const floor = box.height - box.bottom;
      const yTicks = this.isLog ? this.logTicks(y0, y1) : niceTicks(y0, y1, 4);
      for (const tick of yTicks) {
        const at = this.y(tick);
        svgElement("line", {class: "gridline", x1: box.left, x2: box.width - box.right, y1: at, y2: at}, this.svg);
        svgElement("text", {x: box.left - 6, y: at + 4, "text-anchor": "end"}, this.svg).textContent = formatTick(tick);
      }
      const isStep = settings.across === "step";
      let xTicks = niceTicks(x0, x1, Math.max(2, Math.floor(box.width / 90)));
      if (isStep) xTicks = xTicks.filter(Number.isInteger);
      for (const tick of xTicks) {
        svgElement("text", {x: this.x(tick), y: floor + 14, "text-anchor": "middle"}, this.svg).textContent = formatTick(tick);
      }
      svgElement("line", {class: "axis", x1: box.left, x2: box.width - box.right, y1: floor, y2: floor}, this.svg);
      svgElement("text", {x: box.width - box.right, y: box.height - 4, "text-anchor": "end"}, this.svg)
          .textContent = isStep ? "step" : "hours since the first step";
    }

    logTicks(y0, y1) {
      const ticks = [];
      for (let power = Math.floor(Math.log10(y0)); power <= Math.ceil(Math.log10(y1)); ++power) {
        for (const digit of y1 / y0 > 1e3 ? [1] : [1, 2, 5]) {
          const tick = Number((digit * 10 ** power).toPrecision(3));
          if (tick >= y0 && tick <= y1) ticks.push(tick);
        }
      }
      return ticks.length > 7 ? ticks.filter((_, i) => i % Math.ceil(ticks.length / 6) === 0) : ticks;
    }

    // Path through the rows that have a value; a value that is not finite breaks it.
    path(values) {
      let text = "", isDown = false;
      const xs = this.xs();
      for (const i of this.rows) {
        const value = values[i];
        if (value === null) continue;
        if (!Number.isFinite(value) || !Number.isFinite(xs[i]) || (this.isLog && value <= 0)) { isDown = false; continue; }
        text += `${isDown ? "L" : "M"}${this.x(xs[i]).toFixed(1)} ${this.y(value).toFixed(1)}`;
        isDown = true;
      }
      return text;
    }

    area(lows, highs) {
      const xs = this.xs();
      const rows = this.rows.filter((i) => isNumber(lows[i]) && isNumber(highs[i]) && Number.isFinite(xs[i]) &&
                                    (!this.isLog || lows[i] > 0));
      if (rows.length === 0) return "";
      const point = (i, value) => `${this.x(xs[i]).toFixed(1)} ${this.y(value).toFixed(1)}`;
      return "M" + rows.map((i) => point(i, highs[i])).join("L") + "L" +
          rows.reverse().map((i) => point(i, lows[i])).join("L") + "Z";
    }

    drawCurve(curve, box) {
      const style = `stroke:${curve.color}`;
      const fill = `fill:${curve.color}`;
      if (this.spec.stack) {
        svgElement("path", {class: "layer", style: fill, d: this.area(curve.low, curve.high)}, this.svg);
        return;
      }
      if (curve.low && curve.high) {
        svgElement("path", {class: "band", style: fill, d: this.area(curve.low, curve.high)}, this.svg);
      }
      if (curve.line !== curve.raw) svgElement("path", {class: "raw", style, d: this.path(curve.raw)}, this.svg);
      svgElement("path", {class: "line", style, d: this.path(curve.line)}, this.svg);
      const xs = this.xs();
      const rows = this.rows.filter((i) => isNumber(curve.line[i]) && Number.isFinite(xs[i]));
      if ((this.spec.points && rows.length <= 60) || rows.length <= 2) {
        for (const i of rows) {
          svgElement("circle", {class: "dot", style: fill, cx: this.x(xs[i]), cy: this.y(curve.line[i]), r: 4}, this.svg);
        }
      }
      for (const i of this.rows) {
        if (curve.raw[i] === null || Number.isFinite(curve.raw[i]) || !Number.isFinite(xs[i])) continue;
        const at = this.x(xs[i]), floor = box.height - box.bottom - 6;
        svgElement("path", {class: "bad", d: `M${at - 3} ${floor - 3}l6 6m0 -6l-6 6`}, this.svg);
      }
    }

    hover(event) {
      const bounds = this.svg.getBoundingClientRect();
      const at = event.clientX - bounds.left;
      const xs = this.xs();
      let best = null;
      for (const i of this.rows) {
        if (!Number.isFinite(xs[i])) continue;
        if (best === null || Math.abs(this.x(xs[i]) - at) < Math.abs(this.x(xs[best]) - at)) best = i;
      }
      if (best === null) return;
      crossIndex = best;
      for (const chart of charts) chart.showCross(best);
      this.showTip(best, event);
    }

    leave() {
      crossIndex = null;
      tip.hidden = true;
      for (const chart of charts) chart.cross?.replaceChildren();
    }

    showCross(i) {
      if (!this.cross) return;
      this.cross.replaceChildren();
      const box = this.layout();
      const value = this.xs()[i];
      if (!Number.isFinite(value)) return;
      const at = this.x(value);
      if (at < box.left - 1 || at > box.width - box.right + 1) return;
      svgElement("line", {class: "cross", x1: at, x2: at, y1: box.top, y2: box.height - box.bottom}, this.cross);
      for (const curve of this.shown) {
        const shown = this.spec.stack ? null : curve.line[i];
        if (!isNumber(shown) || (this.isLog && shown <= 0)) continue;
        svgElement("circle", {class: "dot", style: `fill:${curve.color}`, cx: at, cy: this.y(shown), r: 4}, this.cross);
      }
    }

    showTip(i, event) {
      tip.replaceChildren();
      element("b", "", `step ${steps[i]}`, tip);
      if (Number.isFinite(hours[i])) element("span", "muted", `  ${hours[i].toFixed(2)} h`, tip);
      const table = element("table", "", undefined, tip);
      const row = (color, label, text) => {
        const line = element("tr", "", undefined, table);
        const cell = element("td", "", undefined, line);
        if (color) element("i", "", undefined, cell).style.background = color;
        cell.append(label);
        element("td", "", text, line);
      };
      const curves = this.spec.stack ? [...this.shown].reverse() : this.shown;
      for (const curve of curves) {
        if (curve.raw[i] === null) continue;
        row(curve.color, curve.label, format(curve.raw[i]));
        if (!this.spec.stack && curve.line !== curve.raw && isNumber(curve.line[i])) row("", "smoothed", format(curve.line[i]));
        if (!this.spec.stack && isNumber(curve.low?.[i]) && isNumber(curve.high?.[i])) {
          row("", this.spec.band, `${format(curve.low[i])} to ${format(curve.high[i])}`);
        }
      }
      if (this.spec.stack && valuesOf(this.spec.stack)) row("", "whole step", format(valuesOf(this.spec.stack)[i]));
      const about = this.spec.note ?? (this.spec.series.length === 1 ? columns.get(this.spec.series[0].name).about : "");
      if (about) element("p", "", about, tip);
      tip.hidden = false;
      const right = event.clientX + 16 + tip.offsetWidth < innerWidth;
      tip.style.left = (right ? event.clientX + 16 : Math.max(4, event.clientX - 16 - tip.offsetWidth)) + "px";
      tip.style.top = Math.max(4, Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)) + "px";
    }
  }

  const addGroup = (title, specs, parent) => {
    const kept = [];
    for (const spec of specs) {
      spec.series = spec.series.filter((s) => columns.has(s.name) && valuesOf(s.name).some((v) => v !== null));
      if (spec.series.length > 0) kept.push(spec);
    }
    if (kept.length === 0) return;
    const section = element("section", "group", undefined, parent);
    if (title) element("h3", "", title, section);
    const grid = element("div", "grid", undefined, section);
    for (const spec of kept) {
      for (const s of spec.series) [s.name, s.low, s.high, spec.stack].forEach((name) => used.add(name));
      charts.push(new Chart(spec, grid));
    }
  };
  // What repeats the reward is not shown twice.
  const sameValues = (a, b) => a && b && a.every((value, i) => Object.is(value, b[i]));
  if (sameValues(valuesOf("critic/score/mean"), valuesOf("critic/rewards/mean"))) {
    const learning = groups[0].charts;
    learning.splice(learning.findIndex((spec) => spec.title === "Score before shaping"), 1);
  }
  for (const group of groups) addGroup(group.title, group.charts, holder);
  const rest = [...columns.keys()].filter((name) => !used.has(name));
  if (rest.length > 0) {
    const details = element("details", "group", undefined, holder);
    element("summary", "", `All other metrics (${rest.length})`, details);
    addGroup("", rest.map((name) => ({title: name, series: [series(name, name)]})), details);
  }

  // ---- toolbar
  const redraw = () => charts.forEach((chart) => chart.draw());
  const smoothing = document.getElementById("smoothing");
  const showSmoothing = () => {
    settings.smoothing = Number(smoothing.value);
    document.getElementById("smoothing-value").textContent = settings.smoothing === 0 ? "off" : settings.smoothing.toFixed(2);
    redraw();
  };
  smoothing.oninput = showSmoothing;
  smoothing.value = steps.length > 40 ? 0.8 : 0;
  document.getElementById("across").onchange = (event) => { settings.across = event.target.value; redraw(); };
  document.getElementById("find").oninput = (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const chart of charts) {
      const names = [chart.spec.title, ...chart.spec.series.flatMap((s) => [s.name, s.label])];
      chart.card.hidden = wanted !== "" && !names.some((name) => name.toLowerCase().includes(wanted));
    }
    for (const group of holder.querySelectorAll(".group")) {
      if (group.tagName === "DETAILS" && wanted !== "") group.open = true;
      group.hidden = !group.querySelector(".chart:not([hidden])");
    }
  };
  showSmoothing();
})();
