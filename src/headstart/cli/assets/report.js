/* The page of `headstart report`. Names, labels and sources are anybody's text: they become text nodes and text on a
   canvas, never markup. Charts are drawn by Apache ECharts, which stands before this in the page. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const kernels = data.kernels;
  const ORIGINS = { worker: "compiled", store: "from the cache", bundle: "from a bundle", remote: "from other hosts",
    farm: "by a farm", failed: "failed", cancelled: "cancelled", pending: "no answer" };
  const CLASS = { "front end": "front", ttgir: "ttgir", llir: "llir", ptx: "ptx", assembler: "assembler", other: "other",
    waiting: "waiting", "kick-off": "kickoff", failed: "failed" };
  const SAID = { "front end": "front end (Python to TTIR)", ttgir: "TTGIR passes", llir: "LLVM IR", ptx: "PTX or AMDGCN",
    assembler: "assembler (ptxas, lld)", other: "other, or not measured", waiting: "blocked on a kernel", "kick-off": "asked for",
    failed: "failed" };
  const MOST_ROWS = 3000;

  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "onclick") element.addEventListener("click", value);
      else if (name === "class") element.className = value;
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children) element.append(child);
    return element;
  };
  const seconds = (value) => value === null || value === undefined ? "" : value >= 100 ? `${value.toFixed(0)} s`
    : value >= 1 ? `${value.toFixed(2)} s` : `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  const titled = (kernel) => kernel.label ? `${kernel.name}  ${kernel.label}` : kernel.name;
  const swatch = (name) => make("span", { class: `swatch c-${name}`, "aria-hidden": "true" });
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // What is shown: a filter for all of the page.
  const state = { text: "", origins: new Set(Object.keys(ORIGINS)), sort: "asked", down: false };
  const haystack = kernels.map((kernel) => `${titled(kernel)} ${kernel.target} ${kernel.where} ${kernel.error}`.toLowerCase());
  const isShown = (place) => state.origins.has(kernels[place].origin)
    && state.text.split(/\s+/).every((word) => haystack[place].includes(word));

  function heading() {
    document.title = `headstart: ${data.run.program.split("/").pop() || data.run.id}`;
    byId("sentence").textContent = data.sentence;
    const run = data.run;
    const kind = { run: "headstart run", enable: "headstart.enable()", build: "headstart build", api: "AsyncCompile" }[run.kind] || run.kind;
    byId("run").textContent = [`${kind} ${run.program}`, run.began.replace("T", " "), run.triton && `Triton ${run.triton}`,
      `Python ${run.python}`, `${run.workers} workers`, run.host, `run ${run.id}`,
      data.processes.length > 1 && `${data.processes.length} processes`].filter(Boolean).join(" · ");
    for (const each of data.commands) {
      const copy = make("button", { type: "button", onclick: () => copied(copy, each.command) }, "Copy");
      byId("commands").append(make("div", { class: "soft" }, each.why),
        make("div", { class: "command" }, make("code", {}, each.command), copy));
    }
    const notes = data.processes.filter((each) => each.damage || each.lost || each.state !== "ended").map((each) =>
      `Process ${each.pid}${each.rank ? ` (rank ${each.rank})` : ""}: ` + [
        each.state === "killed" && "it was killed: what it noted in its last tenth of a second is not here",
        each.state === "running" && "it still runs", each.damage, each.lost && `${each.lost} records could not be written`,
      ].filter(Boolean).join("; ") + ".");
    for (const note of notes) byId("notes").append(make("p", { class: "soft" }, note));
  }

  function copied(button, text) {
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
    const byHand = () => {
      const area = make("textarea", { "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      done();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand); else byHand();
  }

  // The table: also the way in for those who do not use a pointer.

  const COLUMNS = [
    ["name", "kernel", (k) => titled(k), false],
    ["origin", "from", (k) => ORIGINS[k.origin], false],
    ["asked", "asked at", (k) => k.asked, true],
    ["compile_s", "compile", (k) => k.compile_s, true],
    ["waited_s", "waited", (k) => k.waited_s, true],
    ["registers", "regs", (k) => k.registers ?? -1, true],
    ["local", "local B", (k) => k.local_bytes ?? -1, true],
    ["shared", "shared B", (k) => k.shared ?? -1, true],
    ["where", "asked by", (k) => k.where, false],
  ];

  function table() {
    const head = byId("head");
    for (const [id, title, , numeric] of COLUMNS) {
      const sorts = () => { state.down = state.sort === id ? !state.down : numeric && id !== "asked"; state.sort = id; rows(); };
      head.append(make("th", { scope: "col", class: numeric ? "n" : "", id: `sort-${id}` },
        make("button", { type: "button", onclick: sorts }, title)));
    }
    const body = byId("rows");
    body.addEventListener("click", (event) => { const row = event.target.closest("tr"); if (row) details(Number(row.dataset.kernel)); });
    body.addEventListener("keydown", (event) => {
      const row = event.target.closest("tr");
      if (!row) return;
      const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling,
        Home: body.firstElementChild, End: body.lastElementChild }[event.key];
      if (next) { next.focus(); event.preventDefault(); }
      if (event.key === "Enter" || event.key === " ") { details(Number(row.dataset.kernel)); event.preventDefault(); }
    });
    rows();
  }

  function rows() {
    const value = COLUMNS.find(([id]) => id === state.sort)[2];
    const compare = (a, b) => { const x = value(kernels[a]), y = value(kernels[b]);
      return (typeof x === "number" ? x - y : String(x).localeCompare(String(y))) * (state.down ? -1 : 1) || a - b; };
    const shown = kernels.map((_, place) => place).filter(isShown).sort(compare);
    for (const [id] of COLUMNS) {
      byId(`sort-${id}`).setAttribute("aria-sort", id !== state.sort ? "none" : state.down ? "descending" : "ascending");
    }
    byId("rows").replaceChildren(...shown.slice(0, MOST_ROWS).map((place, index) => {
      const kernel = kernels[place];
      const number = (text) => make("td", { class: "n" }, text ?? "");
      return make("tr", { tabindex: index ? "-1" : "0", "data-kernel": place },
        make("td", {}, make("div", { class: "name mono" }, kernel.name), make("small", {}, `${kernel.label} ${kernel.target}`)),
        make("td", { class: "from" }, swatch(kernel.origin), ORIGINS[kernel.origin]),
        number(seconds(kernel.asked)), number(kernel.compile_s ? seconds(kernel.compile_s) : ""),
        number(kernel.waited_s ? seconds(kernel.waited_s) : ""), number(kernel.registers ?? ""),
        number(kernel.local_bytes ?? ""), number(kernel.shared ?? ""),
        make("td", { class: "where", title: kernel.where }, make("bdi", {}, kernel.where)));
    }));
    byId("count").textContent = shown.length === kernels.length ? `${shown.length} kernels`
      : `${shown.length} of ${kernels.length} kernels`;
    if (shown.length > MOST_ROWS) byId("count").textContent += `; the first ${MOST_ROWS} are in the table`;
  }

  function filters() {
    const used = Object.keys(ORIGINS).filter((origin) => data.figures.origins[origin]);
    const refresh = () => { rows(); lanes.draw(); };
    for (const origin of used) {
      const button = make("button", { type: "button", "aria-pressed": "true", "data-origin": origin, onclick: () => {
        if (state.origins.has(origin)) state.origins.delete(origin); else state.origins.add(origin);
        button.setAttribute("aria-pressed", String(state.origins.has(origin)));
        refresh();
      } }, swatch(origin), `${ORIGINS[origin]} ${data.figures.origins[origin]}`);
      byId("origins").append(button);
    }
    byId("filter").addEventListener("input", (event) => { state.text = event.target.value.trim().toLowerCase(); refresh(); });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) { byId("filter").focus(); event.preventDefault(); }
    });
  }

  // Details of one kernel

  function details(place) {
    const kernel = kernels[place];
    byId("detail-name").textContent = titled(kernel);
    const facts = [
      ["target", kernel.target], ["origin", ORIGINS[kernel.origin]],
      ["asked for", `${seconds(kernel.asked)} after the start${kernel.where ? `, at ${kernel.where}` : ""}${kernel.background ? ", ahead of need" : ""}`],
      ["compile", kernel.compile_s ? `${seconds(kernel.compile_s)}, ${seconds(kernel.cpu_s)} of CPU, by worker ${kernel.worker}` : ""],
      ["stages", kernel.stages.map(([name, took]) => `${SAID[name] || name} ${seconds(took)}`).join(", ")],
      ["waited for", kernel.waits.map(([at, took, thread]) => `${seconds(took)} by ${thread} from ${seconds(at)} on`).join("; ")],
      ["saved", kernel.saved_s ? `${seconds(kernel.saved_s)} that its compile had taken` : ""],
      ["error", kernel.error && `${kernel.failed_as}${kernel.failed_in ? ` in ${kernel.failed_in}` : ""}: ${kernel.error}`],
      ["why it was compiled", (kernel.why || []).join("; ")],
      ["constants", pairs(kernel.constants)], ["options", pairs(kernel.options)], ["signature", pairs(kernel.signature)],
      ["registers", kernel.registers ?? ""], ["local memory", kernel.local_bytes === undefined || kernel.local_bytes === null ? ""
        : `${kernel.local_bytes} bytes a thread${kernel.local_bytes ? ": registers spilled, or arrays" : ": nothing spilled"}`],
      ["shared memory", kernel.shared === undefined || kernel.shared === null ? "" : `${kernel.shared} bytes`],
      ["toolchain", kernel.toolchain ? `Triton ${kernel.toolchain}` : ""], ["entry", kernel.path || ""], ["key", kernel.key],
    ];
    byId("facts").replaceChildren(...facts.filter(([, value]) => value !== "" && value !== undefined && value !== null && value !== false)
      .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
    const commands = kernel.commands || [];
    byId("detail-commands").replaceChildren(...commands.flatMap((each) => {
      const copy = make("button", { type: "button", onclick: () => copied(copy, each.command) }, "Copy");
      return [make("div", { class: "soft" }, each.why), make("div", { class: "command" }, make("code", {}, each.command), copy)];
    }));
    const source = kernel.source === null || kernel.source === undefined ? null : data.sources[kernel.source];
    byId("source-title").hidden = byId("source").hidden = source === null;
    byId("source").textContent = source || "";
    for (const row of byId("rows").children) row.setAttribute("aria-selected", String(Number(row.dataset.kernel) === place));
    const dialog = byId("details");
    if (!dialog.open) dialog.showModal();
    dialog.querySelector(".inner").scrollTop = 0;
  }
  const pairs = (values) => Object.entries(values || {}).map(([name, value]) => name ? `${name}=${value}` : value).join(" ");
  const kernelLink = (place) => make("button", { type: "button", class: "link mono", onclick: () => details(place) }, titled(kernels[place]));

  // Charts

  const charts = [];
  function chart(id, height) {
    const element = byId(id);
    element.style.height = `${height}px`;
    const made = echarts.init(element, null, { renderer: "canvas" });
    charts.push(made);
    return made;
  }
  const tip = (title, ...lines) => {
    const box = make("div", { class: "tip" }, make("b", {}, title));
    for (const line of lines) if (line) box.append(make("div", {}, line));
    return box;
  };
  const tooltip = () => ({ backgroundColor: color("card"), borderColor: color("line"), textStyle: { color: color("ink") }, confine: true,
    transitionDuration: 0 });
  const axis = () => ({ axisLine: { lineStyle: { color: color("line") } }, axisLabel: { color: color("soft") },
    splitLine: { lineStyle: { color: color("line"), opacity: 0.6 } }, axisTick: { show: false }, nameTextStyle: { color: color("soft") } });

  const lanes = {
    chart: null,
    height() { return data.lanes.length * 26 + 150; },
    draw() {
      if (!data.lanes.length) { byId("lanes-card").hidden = true; return; }
      this.chart = this.chart || this.begin();
      const bars = [];
      data.lanes.forEach((lane, row) => lane.bars.forEach(([from, to, place, what]) => {
        bars.push({ value: [row, from, to, place, isShown(place) ? 1 : 0], what });
      }));
      const rest = data.lanes.length * 26;
      const area = (name, points, shade) => ({ name, type: "line", step: "end", xAxisIndex: 1, yAxisIndex: 1, data: points, showSymbol: false,
        lineStyle: { width: 1.2, color: shade }, areaStyle: { color: shade, opacity: 0.22 }, itemStyle: { color: shade }, animation: false });
      const end = Math.max(...data.processes.map((each) => each.end), 0.001);
      this.chart.setOption({
        animation: false,
        aria: { enabled: true, label: { description: `Timeline of ${kernels.length} kernels; the table below has the same as text.` } },
        tooltip: { ...tooltip(), trigger: "item" },
        axisPointer: { link: [{ xAxisIndex: "all" }] },
        grid: [{ left: 128, right: 16, top: 8, height: rest }, { left: 128, right: 16, top: rest + 28, height: 60 }],
        xAxis: [{ ...axis(), type: "value", min: 0, max: end, gridIndex: 0, axisLabel: { show: false } },
          { ...axis(), type: "value", min: 0, max: end, gridIndex: 1, axisLabel: { color: color("soft"), showMaxLabel: false, formatter: (value) => `${+value.toFixed(3)} s` } }],
        yAxis: [{ ...axis(), type: "category", inverse: true, data: data.lanes.map((lane) => lane.label), gridIndex: 0,
          axisLabel: { color: color("soft"), width: 118, overflow: "truncate" } },
          { ...axis(), type: "value", gridIndex: 1, minInterval: 1, name: "queue", nameLocation: "middle", nameGap: 40, splitNumber: 2 }],
        dataZoom: [{ type: "slider", xAxisIndex: [0, 1], bottom: 4, height: 22, filterMode: "weakFilter", borderColor: color("line"),
          textStyle: { color: color("soft") }, labelFormatter: (value) => `${value.toFixed(2)} s`, fillerColor: "rgba(90, 140, 220, 0.18)", showDataShadow: false, brushSelect: false },
          { type: "inside", xAxisIndex: [0, 1], filterMode: "weakFilter", zoomOnMouseWheel: "ctrl", moveOnMouseMove: true }],
        series: [{
          type: "custom", xAxisIndex: 0, yAxisIndex: 0, data: bars, encode: { x: [1, 2], y: 0 }, clip: true,
          progressive: 4000,
          tooltip: { formatter: (item) => this.tip(item.data) },
          renderItem: (params, api) => {
            const row = api.value(0), what = bars[params.dataIndex].what;
            const from = api.coord([api.value(1), row]), to = api.coord([api.value(2), row]);
            const isKick = what === "kick-off", height = isKick ? 22 : 18;
            const shape = echarts.graphic.clipRectByRect(
              { x: from[0], y: from[1] - height / 2, width: Math.max(to[0] - from[0], isKick ? 1 : 1.5), height },
              { x: params.coordSys.x, y: params.coordSys.y, width: params.coordSys.width, height: params.coordSys.height });
            return shape && { type: "rect", shape: { ...shape, r: isKick ? 0 : 2 },
              style: { fill: this.colors[what] || this.colors.other, opacity: api.value(4) ? (isKick ? 0.55 : 1) : 0.12 } };
          },
        }, area("waiting for a worker", data.queue.waiting, color("waiting")), area("being compiled", data.queue.running, color("worker"))],
      }, { replaceMerge: ["series"] });
    },
    begin() {
      this.colors = Object.fromEntries(Object.entries(CLASS).map(([what, name]) => [what, color(name)]));
      const made = chart("lanes", this.height());
      made.on("click", (item) => { if (item.seriesType === "custom") details(item.data.value[3]); });
      return made;
    },
    tip({ value, what }) {
      const [, from, to, place] = value, kernel = kernels[place];
      return tip(titled(kernel), `${SAID[what] || what}${what === "kick-off" ? ` at ${seconds(from)}` : `: ${seconds(to - from)}, from ${seconds(from)} on`}`,
        `${ORIGINS[kernel.origin]}${kernel.compile_s ? `, compile ${seconds(kernel.compile_s)}` : ""}  ${kernel.target}`,
        pairs(kernel.constants).slice(0, 300), pairs(kernel.options).slice(0, 200), kernel.where && `asked for at ${kernel.where}`,
        [kernel.registers !== undefined && kernel.registers !== null && `${kernel.registers} registers`,
          kernel.local_bytes !== undefined && kernel.local_bytes !== null && `${kernel.local_bytes} bytes local (spills)`,
          kernel.shared !== undefined && kernel.shared !== null && `${kernel.shared} bytes shared`].filter(Boolean).join(", "),
        kernel.error);
    },
    zoom(factor, shift) {
      const { start, end } = this.chart.getOption().dataZoom[0];
      const middle = (start + end) / 2 + shift * (end - start), half = Math.min(50, Math.max(0.05, (end - start) / 2 * factor));
      const from = Math.max(0, Math.min(100 - 2 * half, middle - half));
      this.chart.dispatchAction({ type: "dataZoom", start: from, end: from + 2 * half });
    },
  };

  function zooming() {
    const acts = { "zoom-in": [0.5, 0], "zoom-out": [2, 0], earlier: [1, -0.3], later: [1, 0.3], whole: [1e9, 0] };
    for (const [id, [factor, shift]] of Object.entries(acts)) byId(id).addEventListener("click", () => lanes.zoom(factor, shift));
    byId("lanes").addEventListener("keydown", (event) => {
      const act = { "+": "zoom-in", "=": "zoom-in", "-": "zoom-out", ArrowLeft: "earlier", ArrowRight: "later", 0: "whole" }[event.key];
      if (act) { lanes.zoom(...acts[act]); event.preventDefault(); }
    });
  }

  function legend() {
    const used = new Set(data.lanes.flatMap((lane) => lane.bars.map((bar) => bar[3])));
    for (const what of Object.keys(CLASS)) {
      if (used.has(what)) byId("legend").append(make("span", {}, swatch(CLASS[what]), SAID[what]));
    }
    byId("legend").append(make("span", {}, "Queue: ", swatch("waiting"), "waiting for a worker, ", swatch("worker"), "being compiled"));
  }

  function sides() {
    byId("stalls").append(...data.stalls.map((stall) => make("li", {}, make("strong", {}, seconds(stall.seconds)), "  ", kernelLink(stall.kernel),
      make("div", { class: "soft" }, `${stall.thread}, ${seconds(stall.at)} after the start. ${stall.advice}`))));
    byId("stalls-card").hidden = !data.stalls.length;
    byId("misses").append(...data.misses.slice(0, 200).map((miss) => {
      const names = new Map();
      for (const place of miss.kernels) if (!names.has(kernels[place].name)) names.set(kernels[place].name, place);
      const item = make("li", {}, make("div", {}, miss.why.join("; ")));
      const links = make("div", {}, make("span", { class: "soft" }, `${miss.kernels.length} ${miss.kernels.length === 1 ? "kernel" : "kernels"}: `));
      [...names.values()].slice(0, 8).forEach((place, index) => links.append(index ? ", " : "", kernelLink(place)));
      item.append(links);
      return item;
    }));
    byId("misses-card").hidden = !data.misses.length;
    byId("fell").append(...data.fell_back.slice(0, 200).map((each) => make("li", {}, make("strong", { class: "mono" }, each.name), make("div", { class: "soft" }, each.why))));
    byId("fell-card").hidden = !data.fell_back.length;
    const total = Object.values(data.stages).reduce((sum, value) => sum + value, 0);
    byId("stages-card").hidden = !total;
    for (const [name, took] of Object.entries(data.stages)) {
      const part = make("span", { class: `c-${CLASS[name]}`, title: `${SAID[name]}: ${seconds(took)}` });
      part.style.width = `${100 * took / total}%`;
      byId("stage-bar").append(part);
      byId("stage-list").append(make("span", {}, swatch(CLASS[name]), `${SAID[name]} ${(100 * took / total).toFixed(0)} %, ${seconds(took)}`));
    }
  }

  function sweeps() {
    byId("sweeps-card").hidden = !data.sweeps.length;
    data.sweeps.slice(0, 60).forEach((sweep, number) => {
      const id = `sweep-${number}`, winner = sweep.winner === null || sweep.winner === undefined ? null : kernels[sweep.winner];
      const box = make("div", {}, make("h2", {}, sweep.name), make("p", { class: "soft" },
        winner ? `${sweep.configurations} configurations; chosen: ` : `${sweep.configurations} configurations`));
      if (winner) box.lastChild.append(kernelLink(sweep.winner));
      box.append(make("div", { id, class: "chart" }));
      byId("sweeps").append(box);
      const values = sweep.cells.map((cell) => cell[2]).filter((value) => value !== null);
      const made = chart(id, 90 + 34 * sweep.ys.length);
      made.setOption({
        animation: false, tooltip: { ...tooltip(), formatter: (item) => tip(titled(kernels[item.data.value[3]]), item.data.value[2] === null ? "it could not run" : `${item.data.value[2].toPrecision(4)} ms`) },
        grid: { left: 90, right: 12, top: 6, bottom: 62 },
        xAxis: { ...axis(), type: "category", data: sweep.xs, name: sweep.x, nameLocation: "middle", nameGap: 22 },
        yAxis: { ...axis(), type: "category", data: sweep.ys, name: sweep.y, nameLocation: "middle", nameGap: 46 },
        visualMap: { show: true, orient: "horizontal", left: "center", bottom: 0, itemHeight: 90, itemWidth: 10, dimension: 2, calculable: false,
          min: Math.min(...values), max: Math.max(...values, Math.min(...values) * 1.0001), text: ["slow (ms)", "fast"],
          textStyle: { color: color("soft") }, inRange: { color: [color("hot"), color("cold")] } },
        series: [{ type: "heatmap", data: sweep.cells.map((cell) => ({ value: cell,
          itemStyle: cell[3] === sweep.winner ? { borderColor: color("waiting"), borderWidth: 3 } : { borderColor: color("card"), borderWidth: 1 } })),
          label: { show: true, color: color("ink"), textBorderColor: color("card"), textBorderWidth: 2, formatter: (item) => item.data.value[2] === null ? "–" : item.data.value[2].toPrecision(3) } }],
      });
      made.on("click", (item) => details(item.data.value[3]));
    });
  }

  function past() {
    byId("history-card").hidden = data.history.length < 1;
    const used = Object.keys(ORIGINS).filter((origin) => data.history.some((run) => run.origins[origin]));
    const made = chart("history", 230);
    made.setOption({
      animation: false,
      tooltip: { ...tooltip(), trigger: "axis", axisPointer: { type: "shadow" }, formatter: (items) => {
        const run = data.history[items[0].dataIndex];
        return tip(`${run.program || "run"} (${run.run})`, run.began.replace("T", " "), ...used.filter((origin) => run.origins[origin]).map((origin) => `${ORIGINS[origin]}: ${run.origins[origin]}`));
      } },
      legend: { top: 0, textStyle: { color: color("soft") }, itemWidth: 12, itemHeight: 12 },
      grid: { left: 50, right: 12, top: 34, bottom: 26 },
      xAxis: { ...axis(), type: "category", data: data.history.map((run) => run.run === data.run.id ? "this run" : run.program || run.run),
        axisLabel: { color: color("soft"), width: 80, overflow: "truncate", hideOverlap: true } },
      yAxis: { ...axis(), type: "value", minInterval: 1, name: "kernels" },
      series: used.map((origin) => ({ name: ORIGINS[origin], type: "bar", stack: "all", barMaxWidth: 42, itemStyle: { color: color(origin) },
        data: data.history.map((run) => run.origins[origin] || 0) })),
    });
  }

  function drawAll() {
    for (const each of charts.splice(0)) each.dispose();
    lanes.chart = null;
    byId("sweeps").replaceChildren();
    lanes.draw();
    sweeps();
    past();
  }

  heading();
  filters();
  table();
  legend();
  sides();
  zooming();
  drawAll();
  byId("close").addEventListener("click", () => byId("details").close());
  byId("details").addEventListener("click", (event) => { if (event.target === byId("details")) byId("details").close(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("resize", () => { for (const each of charts) each.resize(); });
  document.documentElement.dataset.ready = "yes";
})();
