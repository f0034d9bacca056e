"use strict";
// Draws the report from the JSON beside it (autotune/report/report_data.cpp). Journal text goes in as text nodes only.
const data = JSON.parse(document.getElementById("data").textContent);

// ---- elements ----
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}
const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
    filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const text = (value) => el("td", {class: "text"}, value);
const cell = (value, attributes = {}) => el("td", attributes, value);
const row = (batch) => el("th", {class: "stick", scope: "row"}, String(batch));
const table = (heads, rows, attributes = {}) =>
    el("div", {class: "scroll panel"},
       el("table", attributes,
          el("thead", {}, el("tr", {}, heads.map((h) => (typeof h === "string" ? el("th", {}, h) : h)))),
          el("tbody", {}, rows)));
const left = (label) => el("th", {class: "text"}, label);
const folded = (title, note, open, ...inside) =>
    el("details", {class: "panel", open: open ? "" : null},
       el("summary", {}, title, el("span", {}, note ? "  " + note : "")), el("div", {class: "inside"}, ...inside));

// ---- numbers ----
const us = (v) => (v === undefined || v === null ? "–" : v.toFixed(v < 100 ? 2 : v < 1000 ? 1 : 0));
const percent = (f, digits = 0) => (f === undefined || f === null ? "–" : (100 * f).toFixed(digits) + "%");
const loss = (f) => (100 * f).toFixed(f < 0.0095 ? 1 : 0);
const count = (n) => n.toLocaleString("en");
const of = (n, one, more) => `${count(n)} ${n === 1 ? one : more}`;
const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const n = sorted.length;
  return n === 0 ? undefined : (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2;
};
// Colour grows fast from nothing, so that a loss of a few per cent shows.
const tint = (name, f, full) =>
    `background: rgba(var(--${name}), ${(0.8 * Math.sqrt(Math.min(1, f / full))).toFixed(3)})`;

// ---- what things are called ----
const modeName = (mode) => {
  let name = mode.pdl === "off" ? "PDL off: the step alone" : "PDL chain: behind a producer";
  if (mode.phase !== "step" && mode.phase !== "weighted") name += `, ${mode.phase} alone`;
  if (mode.steps_per_flush) name += `, a flush every ${Number(mode.steps_per_flush.toFixed(2))} steps`;
  return name;
};
const modeTag = (mode) => mode.pdl + (mode.phase === "step" || mode.phase === "weighted" ? "" : ` ${mode.phase}`);
const kernelName = (kernel) => {
  const parts = kernel.kernel.split(", ");
  const store = /^mamba2 layer/.test(parts[0]) ? /^ring of/ : /^(snapshots|to a slot|two steps)/;
  const picked = parts.filter((p, i) => i < 3 || /^state /.test(p) || /tokens?$/.test(p) || store.test(p));
  return (picked.join(" · ") || kernel.kernel_digest).replace(/ x /g, " × ");
};
const phaseName = {
  weighted: "step",
  step: "step",
  no_flush: "no flush",
  flush: "flush"
};
const colour = {
  step: "var(--step)",
  "no flush": "var(--no-flush)",
  flush: "var(--flush)"
};

// ---- the tip ----
const tip = document.getElementById("tip");
function showTip(event, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(Math.max(8, event.clientX + 14), innerWidth - box.width - 8);
  const y = event.clientY + 16 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 16;
  tip.style.left = x + "px";
  tip.style.top = Math.max(8, y) + "px";
}
const hideTip = () => {
  tip.hidden = true;
};
addEventListener("scroll", hideTip, {passive: true});

// ---- charts ----
function marker(shape, x, y, colour, hollow) {
  const look = {fill: hollow ? "var(--panel)" : colour, stroke: colour, "stroke-width": hollow ? 1.6 : 0};
  if (shape === "square") return svg("rect", {x: x - 3.4, y: y - 3.4, width: 6.8, height: 6.8, ...look});
  if (shape === "triangle") return svg("path", {d: `M${x} ${y - 4.6}l4.4 7.6h-8.8z`, ...look});
  if (shape === "diamond") return svg("path", {d: `M${x} ${y - 5}l5 5l-5 5l-5-5z`, ...look});
  return svg("circle", {cx: x, cy: y, r: 3.8, ...look});
}
const shapes = {
  step: "circle",
  "no flush": "square",
  flush: "triangle"
};

function swatch(series) {
  const picture = svg("svg", {width: 24, height: 12, "aria-hidden": "true"});
  if (series.cloud) {
    picture.append(svg("path", {class: "cloud", style: "opacity: 0.5", d: "M5 4h0M12 8h0M18 5h0"}));
  } else {
    if (!series.stems)
      picture.append(svg("path", {class: series.dashed ? "floor" : "line", d: "M1 6h22", stroke: series.colour}));
    if (series.shape) picture.append(marker(series.shape, 12, 6, series.colour, series.hollow));
  }
  return el("span", {}, picture, series.name);
}

// The round values of an axis: 1, 2, 5 of each power of ten on a logarithmic one.
function ticks(low, high, logarithmic) {
  const values = [];
  if (logarithmic) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); ++power)
      for (const digit of [1, 2, 5]) values.push(digit * 10 ** power);
    return values.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  }
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((d) => d * power).find((s) => s >= rough * 0.999);
  for (let n = Math.ceil(low / step - 0.001); n * step <= high * 1.0001; ++n) values.push(n * step);
  return values;
}

// series: {name, colour, shape, dashed, stems, hollow, cloud, points: [[batch, y]]}; `tipOf(batch)` gives nodes.
function chart({title, unit, batches, series, logarithmic, low, high, format, tipOf}) {
  const height = 252;
  const box = el("div", {style: `height: ${height}px`});
  const drawn = series.filter((s) => s.points.length > 0);
  const figure = el(
      "figure", {class: "panel"},
      el("figcaption", {}, el("h4", {}, title), el("div", {class: "legend"}, drawn.filter((s) => s.name).map(swatch))),
      box);
  const draw = () => {
    const width = Math.floor(box.clientWidth);
    if (width < 40) return;
    const edge = {left: 44, right: 14, top: 22, bottom: 36};
    const inner = width - edge.left - edge.right;
    const first = Math.log(batches[0]), last = Math.log(batches[batches.length - 1]);
    const x = (b) =>
        edge.left + (last > first ? ((Math.log(b) - first) / (last - first)) * (inner - 16) + 8 : inner / 2);
    const scale = logarithmic ? Math.log : (v) => v;
    const bottom = height - edge.bottom;
    const y = (v) => bottom - ((scale(v) - scale(low)) / (scale(high) - scale(low))) * (bottom - edge.top);
    const picture = svg("svg", {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `${title}, ${unit}, by batch; values in the table below`,
    });
    for (const v of ticks(low, high, logarithmic)) {
      picture.append(
          svg("line", {class: "gridline", x1: edge.left, x2: width - edge.right, y1: y(v), y2: y(v)}),
          svg("text", {x: edge.left - 7, y: y(v) + 4, "text-anchor": "end"}, format(v)));
    }
    picture.append(
        svg("text", {x: 2, y: 11}, unit),
        svg("line", {class: "axis", x1: edge.left, x2: width - edge.right, y1: bottom, y2: bottom}),
        svg("text", {x: edge.left + inner / 2, y: height - 3, "text-anchor": "middle"}, "batch, requests"));
    let free = Infinity;
    for (const b of [...batches].reverse()) {
      const half = 3.7 * String(b).length;
      if (x(b) + half > free) continue;
      free = x(b) - half - 5;
      picture.append(svg("text", {x: x(b), y: bottom + 17, "text-anchor": "middle"}, String(b)));
    }
    const inside = (p) => p[1] >= low * 0.999 && p[1] <= high * 1.001;
    for (const s of drawn) {
      const points = s.points.filter(inside);
      if (s.cloud) {
        picture.append(svg("path", {
          class: "cloud",
          d: points.map((p, i) => `M${(x(p[0]) + (((i * 0.618) % 1) - 0.5) * 9).toFixed(1)} ${y(p[1]).toFixed(1)}h0`)
                 .join("")
        }));
        continue;
      }
      const at = points.map((p) => [x(p[0]), y(p[1])]);
      if (s.stems) {
        for (const [px, py] of at)
          picture.append(svg(
              "line", {x1: px + s.stems, x2: px + s.stems, y1: bottom, y2: py, stroke: s.colour, "stroke-width": 2}));
      } else {
        picture.append(svg("path", {
          class: s.dashed ? "floor" :
              s.thin      ? "line thin" :
                            "line",
          stroke: s.colour,
          d: at.map((p, i) => `${i ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`).join(""),
        }));
      }
      if (s.shape) picture.append(...at.map((p) => marker(s.shape, p[0] + (s.stems || 0), p[1], s.colour, s.hollow)));
    }
    const cursor = svg("line", {class: "cursor", y1: edge.top, y2: bottom, visibility: "hidden"});
    picture.append(cursor);
    batches.forEach((b, i) => {
      const from = i ? (x(batches[i - 1]) + x(b)) / 2 : edge.left;
      const to = i + 1 < batches.length ? (x(b) + x(batches[i + 1])) / 2 : width - edge.right;
      const hit = svg("rect", {class: "hit", x: from, y: edge.top, width: to - from, height: bottom - edge.top});
      const show = (event) => {
        cursor.setAttribute("x1", x(b));
        cursor.setAttribute("x2", x(b));
        cursor.setAttribute("visibility", "visible");
        showTip(event, ...tipOf(b));
      };
      hit.addEventListener("pointermove", show);
      hit.addEventListener("pointerdown", show);
      hit.addEventListener("pointerleave", () => {
        cursor.setAttribute("visibility", "hidden");
        hideTip();
      });
      picture.append(hit);
    });
    box.replaceChildren(picture);
  };
  let width = 0;
  new ResizeObserver(() => {
    if (Math.floor(box.clientWidth) === width) return;
    width = Math.floor(box.clientWidth);
    requestAnimationFrame(draw);
  }).observe(box);
  return figure;
}

const whyNote = (answer) => !answer || answer.why === "exact" ?
    null :
    el("span", {class: "badge " + (answer.why === "predicted" ? "predicted" : ""), title: answer.reason},
       answer.why.replace("_", " "));
const regretText = (answer) => !answer ? "–" :
    answer.regret === undefined        ? (answer.plan ? "not timed" : "default plan") :
                                         percent(answer.regret, 1) + (answer.remark ? " *" : "");

function tipRows(batch, rows, plan) {
  return [
    el("b", {}, `batch ${batch}`),
    el("table", {},
       el("tbody", {},
          rows.filter(Boolean).map(([what, ...values]) => el("tr", {}, cell(what), values.map((v) => cell(v)))))),
    plan ? el("div", {class: "plan"}, plan.replace(/,/g, ", ")) : null,
  ].filter(Boolean);
}

// ---- one PDL mode of a kernel ----
function charts(kernel, mode) {
  const cells = mode.cells.filter((c) => c.best);
  if (cells.length === 0) return el("p", {}, "No plan was timed in full.");
  const batches = cells.map((c) => c.batch);
  const at = new Map(cells.map((c) => [c.batch, c]));
  const names = cells.some((c) => (c.phases || []).length === 2) ? ["step", "no flush", "flush"] : ["step"];
  const phaseOf = (c, name) => (name === "step" ? c.best : (c.phases || []).find((p) => phaseName[p.phase] === name));
  const points = (name, field) => cells.map((c) => [c.batch, phaseOf(c, name)?.[field]]).filter((p) => p[1] > 0);
  const lines = names.map((name) => ({
                            name,
                            colour: colour[name],
                            shape: shapes[name],
                            thin: name !== "step",
                            points: points(name, "us"),
                          }));
  const floors = names.map((name) => ({
                             name: name === "step" ? (names.length > 1 ? "floor of each" : "memory floor") : "",
                             colour: colour[name],
                             dashed: true,
                             points: points(name, "floor_us"),
                           }));
  const drawn = [...lines, ...floors].flatMap((s) => s.points.map((p) => p[1]));
  const latency = chart({
    title: "Latency",
    unit: "us a step",
    batches,
    logarithmic: true,
    low: Math.min(...drawn) * 0.85,
    high: Math.max(...drawn) * 1.6,
    series: [
      {name: "every plan", cloud: true, points: mode.cells.flatMap((c) => c.candidates.map((p) => [c.batch, p[2]]))},
      ...lines, ...floors
    ],
    format: (v) => String(+v.toPrecision(3)),
    tipOf: (b) => {
      const c = at.get(b);
      return tipRows(
          b,
          [
            ["", "us", "floor", "share"],
            ...names.map((name) => [name, phaseOf(c, name)])
                .filter((n) => n[1])
                .map(([name, p]) => [name, us(p.us), us(p.floor_us), percent(p.share, 1)]),
            ["rounds", `${us(c.best.us_min)} to ${us(c.best.us_max)}`], ["plans timed", count(c.candidates.length)],
            ["within 1%", count(c.near)]
          ],
          kernel.plans[c.best.plan][0]);
    },
  });
  const shares = names.map((name) => ({
                             name,
                             colour: colour[name],
                             shape: shapes[name],
                             thin: name !== "step",
                             points: points(name, "share"),
                           }));
  const reached = shares.flatMap((s) => s.points.map((p) => p[1]));
  const share = reached.length === 0 ? null : chart({
    title: "Share of the floor",
    unit: "floor / time; 100% is the memory floor",
    batches,
    low: Math.max(0, Math.floor(10 * Math.min(...reached) - 0.5) / 10),
    high: Math.max(1, ...reached),
    series: shares,
    format: (v) => percent(v),
    tipOf: (b) => tipRows(
        b,
        names.map((name) => [name, phaseOf(at.get(b), name)])
            .filter((n) => n[1])
            .map(([name, p]) => [name, percent(p.share, 1)])),
  });
  const regrets = (field) => cells.filter((c) => c[field]?.regret !== undefined).map((c) => [c.batch, c[field].regret]);
  const own = regrets("table"), without = regrets("left_out");
  const regret = chart({
    title: "Regret of the table",
    unit: "slower than the best plan timed",
    batches,
    low: 0,
    high: Math.max(0.02, ...[...own, ...without].map((p) => 1.08 * p[1])),
    format: (v) => +(100 * v).toPrecision(3) + "%",
    series: [
      {name: "its row", colour: "var(--step)", shape: "circle", stems: -3, points: own},
      {name: "that row left out", colour: "var(--flush)", shape: "diamond", hollow: true, stems: 3, points: without}
    ],
    tipOf: (b) => tipRows(
        b,
        [
          ["its row", regretText(at.get(b).table), at.get(b).table?.why ?? ""],
          ["left out", regretText(at.get(b).left_out), at.get(b).left_out?.why ?? ""]
        ],
        at.get(b).table?.plan),
  });
  return el("div", {class: "charts"}, latency, share, own.length + without.length ? regret : null);
}

function effects(kernel, mode) {
  if (mode.effects.length === 0) return null;
  const rows = [];
  for (const effect of mode.effects) {
    rows.push(
        el("tr", {class: "group"},
           el("th", {colspan: mode.cells.length + 1, scope: "rowgroup"},
              el("div", {class: "pinned"}, effect.tunable, el("span", {}, "  " + effect.meaning)))));
    for (const value of effect.values) {
      rows.push(el("tr", {}, el("th", {class: "stick", scope: "row"}, value.value), value.best.map((best) => {
        if (!best) return cell("·", {class: "none", title: "no plan with this value was timed"});
        const label = `${us(best[1])} us: ${kernel.plans[best[0]][0]}`;
        return cell(
            best[2] < 0.0005 ? "0" : loss(best[2]),
            {class: best[2] < 0.0005 ? "best" : null, style: tint("loss", best[2], 0.5), title: label});
      })));
    }
  }
  const heads =
      [el("th", {class: "stick"}, "batch"), ...mode.cells.map((c) => el("th", {scope: "col"}, String(c.batch)))];
  return folded(
      "Effect of each tunable", "the best plan with that value, % slower than the best of all", true,
      el("div", {class: "key"},
         [0, 0.01, 0.05, 0.2, 0.5].map((f) => el("span", {style: tint("loss", f, 0.5)}, f ? `${100 * f}%` : "best"))),
      table(heads, rows, {class: "heat"}));
}

function cellTable(kernel, mode) {
  const phases = mode.cells.some((c) => (c.phases || []).length === 2);
  const rows = mode.cells.map((c) => {
    if (!c.best) return el("tr", {}, row(c.batch), cell("no plan was timed in full", {class: "text", colspan: 12}));
    const phase = (name) => c.phases?.find((p) => p.phase === name)?.us;
    return el(
        "tr", {}, row(c.batch), cell(us(c.best.us), {class: "best"}),
        cell(`${us(c.best.us_min)} – ${us(c.best.us_max)}`), cell(us(c.best.floor_us)), cell(percent(c.best.share, 1)),
        phases ? [cell(us(phase("no_flush"))), cell(us(phase("flush")))] : [], cell(count(c.candidates.length)),
        cell(count(c.near)), cell(el("span", {}, whyNote(c.table), " ", regretText(c.table))),
        cell(el("span", {}, whyNote(c.left_out), " ", regretText(c.left_out))),
        el("td", {class: "text plan"}, kernel.plans[c.best.plan][0]));
  });
  return folded(
      "Values by batch", "the best plan of each cell, and what the table's costs there (* by few replays)", false,
      table(
          [
            el("th", {class: "stick"}, "batch"), "us", "min – max", "floor", "share",
            ...(phases ? ["no flush", "flush"] : []), "timed", "within 1%", "table's regret", "row left out",
            left("best plan")
          ],
          rows));
}

function fastest(kernel, mode) {
  const phases = mode.cells.some((c) => (c.phases || []).length === 2);
  const box = el("div");
  const pick =
      el("select", {"aria-label": "batch"}, mode.cells.map((c, i) => el("option", {value: i}, String(c.batch))));
  const draw = () => {
    const c = mode.cells[+pick.value];
    const best = c.best ? c.best.us : c.candidates[0]?.[2];
    box.replaceChildren(table(
        [
          "us", "slower", "min – max", ...(phases ? ["no flush", "flush"] : []), "regs", "smem, B", left("timed"),
          left("plan"), left("source")
        ],
        c.candidates.slice(0, 15).map((p) => {
          const plan = kernel.plans[p[0]];
          return el(
              "tr", {}, cell(us(p[2])), cell(percent(Math.max(0, p[2] / best - 1), 1)),
              cell(`${us(p[3])} – ${us(p[4])}`), phases ? [cell(us(p[5])), cell(us(p[6]))] : [], cell(String(plan[2])),
              cell(String(plan[3])), text(p[1] ? "in full" : "dropped early"), el("td", {class: "text plan"}, plan[0]),
              el("td", {class: "text plan dim"}, plan[1]));
        })));
  };
  pick.addEventListener("change", draw);
  draw();
  return folded(
      "The 15 fastest plans", "with their registers, shared memory and source digests", false,
      el("p", {}, "batch ", pick), box);
}

function kernelSection(kernel, index) {
  return el(
      "section", {id: `kernel-${index}`}, el("h2", {}, kernelName(kernel)),
      el("p", {class: "dim small"}, `${kernel.kernel}. Kernel `, el("code", {}, kernel.kernel_digest),
         `, device ${kernel.device}, ${of(kernel.sources, "source", "sources")}, ${
             of(kernel.measurements, "line", "lines")}.`),
      kernel.modes.length ? null : el("p", {}, "Nothing was timed."),
      kernel.modes
          .map(
              (mode, m) =>
                  [el("h3", {id: `kernel-${index}-${m}`}, modeName(mode)), charts(kernel, mode), effects(kernel, mode),
                   cellTable(kernel, mode), fastest(kernel, mode)])
          .flat());
}

// ---- forms of verifying drafts ----
const forms = {
  snapshots: {colour: "var(--flush)", shape: "triangle"},
  slots: {colour: "var(--no-flush)", shape: "square"},
  replay: {colour: "var(--replay)", shape: "diamond"},
  ring: {colour: "var(--step)", shape: "circle"},
};
const kib = (bytes) => count(Math.round(bytes / 102.4) / 10);
const acceptanceName = (a, tokens) => {
  const kept = `${Number(a.kept.toFixed(2))} of ${tokens} kept`;
  return a.draft_chance === undefined ? `${kept} (${a.accepted})` : `drafts ${percent(a.draft_chance)}: ${kept}`;
};
const formOf = (cell, name) => cell.forms.find((f) => f.form === name && f.us > 0);

// Horizontal bars: {name, colour, value}; values are written beside them.
function bars({title, unit, rows, format}) {
  const height = 252;
  const box = el("div", {style: `height: ${height}px`});
  const figure = el("figure", {class: "panel"}, el("figcaption", {}, el("h4", {}, title)), box);
  const most = Math.max(...rows.map((r) => r.value));
  const draw = () => {
    const width = Math.floor(box.clientWidth);
    if (width < 40) return;
    const edge = {left: 74, right: 78, top: 26, bottom: 8};
    const step = (height - edge.top - edge.bottom) / rows.length;
    const picture =
        svg("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}, ${unit}`},
            svg("text", {x: 2, y: 11}, unit));
    rows.forEach((r, i) => {
      const y = edge.top + (i + 0.5) * step, long = Math.max(2, (r.value / most) * (width - edge.left - edge.right));
      picture.append(
          svg("text", {x: edge.left - 8, y: y + 4, "text-anchor": "end"}, r.name),
          svg("rect", {x: edge.left, y: y - 9, width: long, height: 18, rx: 2, fill: r.colour}),
          svg("text", {x: edge.left + long + 7, y: y + 4}, format(r.value)));
    });
    box.replaceChildren(picture);
  };
  let width = 0;
  new ResizeObserver(() => {
    if (Math.floor(box.clientWidth) === width) return;
    width = Math.floor(box.clientWidth);
    requestAnimationFrame(draw);
  }).observe(box);
  return figure;
}

function formCharts(of) {
  const drawn = of.acceptances.flatMap((a) => a.cells.flatMap((c) => c.forms.map((f) => f.us))).filter((v) => v > 0);
  if (drawn.length === 0) return el("p", {}, "No form was timed.");
  const low = Math.min(...drawn) * 0.8, high = Math.max(...drawn) * 1.3;
  const names = Object.keys(forms);
  const lines = of.acceptances.map((a) => {
    const at = new Map(a.cells.map((c) => [c.batch, c]));
    return chart({
      title: acceptanceName(a, of.tokens),
      unit: "us a layer's step, copies included",
      batches: a.cells.map((c) => c.batch),
      logarithmic: true,
      low,
      high,
      series: names.map((name) => ({
                          name,
                          ...forms[name],
                          points: a.cells.map((c) => [c.batch, formOf(c, name)?.us]).filter((p) => p[1] > 0),
                        })),
      format: (v) => String(+v.toPrecision(3)),
      tipOf: (b) => tipRows(
          b,
          [
            ["", "us", "floor", "us/token"],
            ...names.map((name) => [name, formOf(at.get(b), name)])
                .filter((n) => n[1])
                .map(([name, f]) => [name, us(f.us), us(f.floor_us), us(f.us_per_token)])
          ]),
    });
  });
  const slots = bars({
    title: "Memory of a request",
    unit: "KiB a layer: state and what is kept beside it",
    rows: of.slots.map((s) => ({name: s.form, colour: forms[s.form].colour, value: s.bytes})),
    format: kib,
  });
  return el("div", {class: "charts"}, lines, slots);
}

// The fastest form of each batch, and what the next one takes more.
function fastestForms(of) {
  const batches = [...new Set(of.acceptances.flatMap((a) => a.cells.map((c) => c.batch)))].sort((a, b) => a - b);
  const rows = of.acceptances.map((a) => {
    const at = new Map(a.cells.map((c) => [c.batch, c]));
    return el(
        "tr", {}, el("th", {class: "text stick", scope: "row"}, acceptanceName(a, of.tokens)), batches.map((b) => {
          const timed = (at.get(b)?.forms || []).filter((f) => f.us > 0).sort((x, y) => x.us - y.us);
          if (timed.length === 0) return cell("·", {class: "none"});
          const next = timed[1] ? `${timed[1].form} +${percent(timed[1].us / timed[0].us - 1)}` : "";
          return cell([el("b", {}, timed[0].form), ` ${us(timed[0].us)}`, el("small", {}, next)]);
        }));
  });
  return table(
      [el("th", {class: "text stick"}, "fastest, us, and the next"), ...batches.map(String)], rows, {class: "heat"});
}

function formTable(of) {
  const rows = of.acceptances.flatMap((a) => a.cells.flatMap((c) => c.forms.map((f) => {
    const head = [row(c.batch), text(acceptanceName(a, of.tokens)), text(f.form)];
    if (!(f.us > 0))
      return el(
          "tr", {}, head, el("td", {class: "text wide", colspan: 9}, `${f.outcome.replace("_", " ")}: ${f.reason}`));
    return el(
        "tr", {}, head, cell(us(f.us), {class: f.form === c.fastest ? "best" : null}), cell(us(f.kernel_us)),
        cell(f.copies_us > 0 ? us(f.copies_us) : "–"), cell(us(f.floor_us)), cell(percent(f.share, 1)),
        cell(us(f.us_per_token)), cell((f.moved_bytes / 1e6).toFixed(2)), cell(kib(f.slot_bytes)),
        el("td", {class: "text plan"}, f.why === "exact" ? null : el("span", {class: "badge"}, f.why.replace("_", " ")),
           " ", f.plan));
  })));
  return folded(
      "Values by batch", "kernel and copies measured apart and together; the plans are the tables'", false,
      table(
          [
            el("th", {class: "stick"}, "batch"), left("acceptance"), left("form"), "us", "kernel", "copies", "floor",
            "share", "us a token", "MB moved", "KiB a request", left("plan")
          ],
          rows));
}

function draftSection(group) {
  return el(
      "section", {}, el("h2", {}, `Verifying drafts: ${kernelName(group)}`),
      el("p", {class: "dim small"},
         `${group.kernel}, device ${group.device}. Microseconds of a layer's step, cold. Snapshots: the state stays, ` +
             "the accepted ones of all layers are copied in one launch at the end of the step. Slots, replay and " +
             "ring copy nothing. The host's bookkeeping is index work once a step and in no figure; nor are the " +
             "windows of a convolution."),
      group.tokens.flatMap(
          (of) =>
              [el("h3", {}, `${of.tokens} tokens a step, ${modeName({pdl: group.pdl, phase: "step"})}`),
               fastestForms(of), el("div", {class: "gap"}), formCharts(of), formTable(of)]));
}

// ---- the page ----
function overview() {
  const batches = [...new Set(data.kernels.flatMap((k) => k.modes.flatMap((m) => m.cells.map((c) => c.batch))))].sort(
      (a, b) => a - b);
  if (batches.length === 0) return el("p", {}, "Nothing was timed.");
  const rows = data.kernels.flatMap((kernel, k) => kernel.modes.length === 0 ? [] : [
    el("tr", {class: "group"},
       el("th", {colspan: batches.length + 1, scope: "rowgroup"},
          el("a", {class: "pinned", href: `#kernel-${k}`}, kernelName(kernel)))),
    ...kernel.modes.map((mode, m) => {
      const at = new Map(mode.cells.map((c) => [c.batch, c]));
      return el(
          "tr", {}, el("th", {class: "text stick", scope: "row"}, el("a", {href: `#kernel-${k}-${m}`}, modeTag(mode))),
          batches.map((b) => {
            const best = at.get(b)?.best;
            return best ? cell(
                              [us(best.us), el("small", {}, percent(best.share))],
                              {style: tint("good", best.share ** 3 * 0.45, 1)}) :
                          cell("·", {class: "none"});
          }));
    })
  ]);
  return table([el("th", {class: "text stick"}, "batch"), ...batches.map(String)], rows, {class: "heat"});
}

function failures() {
  const found = data.kernels.flatMap((kernel, k) => kernel.failures.map((f) => [kernel, k, f]));
  if (found.length === 0) return el("p", {}, "Nothing failed or was left out.");
  const most = Math.max(...found.map((f) => f[2].count));
  return table(
      [
        left("kernel"), left("outcome"), left("reason (# stands for a number)"), el("th", {class: "text"}, "lines"),
        left("for example")
      ],
      found.map(
          ([kernel, k, f]) =>
              el("tr", {}, el("td", {class: "text name"}, el("a", {href: `#kernel-${k}`}, kernelName(kernel))),
                 text(f.outcome.replace("_", " ")), el("td", {class: "text wide"}, f.reason || "–"),
                 el("td", {class: "text"}, count(f.count),
                    el("span", {class: "bar", style: `width: ${Math.max(3, (90 * f.count) / most)}px`})),
                 el("td", {class: "text wide"}, f.batch > 0 ? `batch ${f.batch}, ${f.pdl}: ` : "", f.example,
                    el("div", {class: "plan dim"}, f.plan.replace(/,/g, ", "))))));
}

function provenance() {
  return [
    table(
        [
          left("device"), left("name"), left("driver"), left("NVRTC"), "lines", left("from"), left("to"),
          left("how it was timed")
        ],
        data.provenance.map(
            (p) =>
                el("tr", {}, text(p.device), text(p.device_name), text(p.driver), text(p.nvrtc),
                   cell(count(p.measurements)), text(p.from), text(p.to), el("td", {class: "text wide"}, p.policy)))),
    el("p", {class: "small"}, "Journals: ",
       data.journals.length ?
           data.journals
               .map((j) => j.name + (j.skipped ? ` (${of(j.skipped, "line", "lines")} could not be read)` : ""))
               .join(", ") :
                                                 "not named",
       data.kernels.length === 0 ? "" : ". Table: ",
       data.kernels.length === 0 ? "" :
           data.table.fitted     ? "fitted to these journals, a row for each measured size" :
                                   `${data.table.name}, ${of(data.table.rows, "row", "rows")}`,
       `. Written by ssmjit ${data.version}.`)
  ];
}

function otherRows() {
  if (data.other_rows.length === 0) return null;
  return folded(
      "Rows of the table that these journals have no cell of", count(data.other_rows.length), false,
      table(
          [left("device"), left("PDL"), "heads", "us", "floor", left(""), left("plan"), left("kernel")],
          data.other_rows.map(
              (r) => el(
                  "tr", {}, text(r.device), text(r.pdl), cell(count(r.total_heads)), cell(us(r.us)),
                  cell(us(r.floor_us)),
                  el("td", {class: "text"}, r.predicted ? el("span", {class: "badge predicted"}, "predicted") : null),
                  el("td", {class: "text plan"}, r.plan), text(r.kernel)))));
}

const cells = data.kernels.flatMap((k) => k.modes.flatMap((m) => m.cells));
const timed = cells.filter((c) => c.best);
const regrets = (field) => timed.map((c) => c[field]?.regret).filter((r) => r !== undefined);
const most = (values) => (values.length ? percent(Math.max(...values), 1) : "–");
const outcomes = {};
for (const kernel of data.kernels)
  for (const [outcome, n] of Object.entries(kernel.outcomes)) outcomes[outcome] = (outcomes[outcome] || 0) + n;
const failed = Object.entries(outcomes)
                   .filter(([o]) => !["ok", "dropped", "verified", "pruned"].includes(o))
                   .reduce((sum, [, n]) => sum + n, 0);
const noRow = timed.filter((c) => c.table && !c.table.plan).length;
const notTimed = timed.filter((c) => c.table?.plan && c.table.regret === undefined).length;
const dates = data.provenance.map((p) => [p.from, p.to]).flat().filter(Boolean).sort();
const days = [...new Set(dates.length ? [dates[0].slice(0, 10), dates[dates.length - 1].slice(0, 10)] : [])];
const devices = [...new Set(data.provenance.map((p) => p.device_name || p.device))];
const figure = (value, label) => el("div", {}, el("b", {}, value), el("span", {}, label));

document.title = `ssmjit report: ${devices.join(", ")}`;
const sweep = data.kernels.length > 0 ?
    [
      el("div", {class: "figures"}, figure(count(data.measurements), "measurements"),
         figure(count(outcomes.ok || 0), "timed in full"), figure(count(outcomes.dropped || 0), "dropped, slower"),
         outcomes.pruned ? figure(count(outcomes.pruned), "left out untimed") : "", figure(count(failed), "failed"),
         figure(percent(median(timed.map((c) => c.best.share).filter((s) => s > 0))), "of the floor, median cell"),
         figure(most(regrets("table")), data.table.fitted ? "worst regret, own table" : "worst regret of the table"),
         figure(most(regrets("left_out")), "worst regret, row left out")),
      noRow ? el("p", {class: "alarm"},
                 `For ${of(noRow, "cell", "cells")} the table has no row: a lookup takes the default plan there.`) :
              "",
      notTimed ? el("p", {class: "alarm"},
                    `In ${of(notTimed, "cell", "cells")} the table's plan was not timed, so its regret is not known.`) :
                 "",
      el("h2", {}, "Best step of each cell"),
      el("p", {class: "dim small"},
         "Microseconds on cold state, and below them the share of the memory floor that was measured in the same run."),
      overview()
    ] :
    [];
document.getElementById("page").append(
    el("h1", {}, `${data.kernels.length > 0 ? "Sweep of" : "Forms of verifying drafts on"} ${devices.join(", ")}`),
    el("p", {class: "dim"},
       [
         days.join(" to "),
         data.kernels.length > 0 ? of(data.kernels.length, "kernel", "kernels") : "",
         data.kernels.length > 0 ? of(cells.length, "cell", "cells") + " (kernel, PDL mode, batch)" : "",
       ].filter(Boolean)
           .join(" · ")),
    ...sweep, ...data.speculative.map(draftSection), ...data.kernels.map(kernelSection),
    ...(data.kernels.length > 0 ? [el("h2", {}, "Failures, by reason"), failures()] : []), el("h2", {}, "Provenance"),
    ...provenance(), otherRows() || "");
