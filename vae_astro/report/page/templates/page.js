"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // -- tables: a button in every heading sorts by its column --------------------------------------
  const valueOf = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text);
    return text !== "" && Number.isFinite(number) ? number : text;
  };
  const isMissing = (value) => value === "" || value === "–" || value === "None";
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
        rows.sort(([a], [b]) => {
          // what is not known stands at the end, whichever way
          if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
          return up ? compare(a, b) : compare(b, a);
        });
        table.tBodies[0].replaceChildren(...rows.map(([, row]) => row));
      });
    });
  }

  // what is folded in is printed as well
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });

  // -- the latent map -----------------------------------------------------------------------------
  const held = document.getElementById("map-data");
  if (!held) return;
  const data = JSON.parse(held.textContent);
  const { tiles } = data;
  const get = (id) => document.getElementById(id);
  const plot = get("map-plot");
  const sheet = get("map-sprite");
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 720, HEIGHT = 540, MARGIN = 44, NEAR_ENOUGH = 24;
  const n = data.facts.length;
  let places = [];
  let ends = [];
  let shown = -1;
  let kept = false;
  let alone = null;
  get("latent-map").hidden = false;

  const element = (name, attributes) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const OUTLINES = {
    circle: (x, y, r) => `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`,
    square: (x, y, r) => `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: (x, y, r) => `M${x},${y - 1.25 * r}l${1.2 * r},${2.1 * r}h${-2.4 * r}z`,
    diamond: (x, y, r) => `M${x},${y - 1.35 * r}l${1.35 * r},${1.35 * r}l${-1.35 * r},${1.35 * r}l${-1.35 * r},${-1.35 * r}z`,
    cross: (x, y, r) => {
      const a = r / 2.2, b = r * 1.1 - a;
      return `M${x - a},${y - a}v${-b}h${2 * a}v${b}h${b}v${2 * a}h${-b}v${b}h${-2 * a}v${-b}h${-b}v${-2 * a}z`;
    },
  };

  const fraction = (colour, value) => {
    if (value === null) return null;
    const [low, high] = colour.limits;
    const at = colour.log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return Math.min(1, Math.max(0, at));
  };
  const shade = (at) => {
    if (at === null) return "#8a8a8a";
    return `rgb(${data.shades[Math.round(at * (data.shades.length - 1))].join(",")})`;
  };
  const words = (value) => {
    if (value === null) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  const told = (colour, k) => {
    const value = colour.values[k];
    return colour.categories.length ? colour.categories[value].name : words(value);
  };

  const place = () => {
    const { x, y } = data.layouts[get("map-layout").selectedIndex];
    const spread = (values, from, to) => {
      let low = Infinity, high = -Infinity;
      for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
      const span = high - low || 1;
      return values.map((value) => from + (to - from) * (high > low ? (value - low) / span : 0.5));
    };
    ends = [x, y].map((values) => [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)]);
    const across = spread(x, MARGIN, WIDTH - 14);
    const up = spread(y, HEIGHT - MARGIN, 14);
    places = across.map((value, k) => [value, up[k]]);
  };

  const draw = () => {
    const layout = data.layouts[get("map-layout").selectedIndex];
    const colour = data.colours[get("map-colour").selectedIndex];
    const group = element("g", {});
    const radius = n > 1200 ? 3.6 : n > 300 ? 4.4 : 5.5;
    places.forEach(([x, y], k) => {
      let fill = "#0072b2", shape = "circle", faded = false;
      if (colour && colour.categories.length) {
        const category = colour.categories[colour.values[k]];
        [fill, shape] = [category.colour, category.shape];
        faded = alone !== null && alone !== colour.values[k];
      } else if (colour) fill = shade(fraction(colour, colour.values[k]));
      const drawn = element("path", {
        d: OUTLINES[shape](x, y, radius), fill, stroke: "#fff", "stroke-width": 0.6,
      });
      if (faded) drawn.classList.add("faded");
      group.append(drawn);
    });
    const bottom = HEIGHT - MARGIN + 10, left = MARGIN - 10;
    const axis = element("path", { d: `M${left},8V${bottom}H${WIDTH - 8}`, fill: "none", class: "axis" });
    // the lowest and the highest value of each axis: a code that says nothing spans next to nothing
    const ticks = ends.flatMap(([low, high], upward) => [low, high].map((value, top) => {
      const at = upward ? (top ? 14 : HEIGHT - MARGIN) : (top ? WIDTH - 14 : MARGIN);
      const tick = element("text", upward
        ? { x: -at, y: 18, transform: "rotate(-90)", "text-anchor": top ? "end" : "start" }
        : { x: at, y: HEIGHT - 10, "text-anchor": top ? "end" : "start" });
      tick.textContent = high > low ? words(value) : top ? "" : `all ${words(value)}`;
      return tick;
    }));
    const along = element("text", { x: WIDTH / 2, y: HEIGHT - 10, "text-anchor": "middle" });
    along.textContent = layout.axes[0];
    const upwards = element("text", {
      x: -HEIGHT / 2, y: 18, transform: "rotate(-90)", "text-anchor": "middle",
    });
    upwards.textContent = layout.axes[1];
    const marks = element("g", { id: "map-marks" });
    plot.replaceChildren(axis, ...ticks, along, upwards, group, marks);
    mark();
  };

  const legend = () => {
    const colour = data.colours[get("map-colour").selectedIndex];
    const box = get("map-legend");
    box.replaceChildren();
    if (!colour) return;
    if (!colour.categories.length) {
      const ramp = document.createElement("span");
      ramp.className = "ramp";
      for (const rgb of data.shades) {
        const step = document.createElement("span");
        step.style.background = `rgb(${rgb.join(",")})`;
        ramp.append(step);
      }
      box.append(`${colour.name}: ${words(colour.limits[0])}`, ramp,
        `${words(colour.limits[1])}${colour.log ? " (logarithmic)" : ""}`);
      return;
    }
    colour.categories.forEach((category, k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(alone === k));
      const sign = element("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" });
      sign.append(element("path", { d: OUTLINES[category.shape](8, 8, 5), fill: category.colour, stroke: "#555", "stroke-width": 0.5 }));
      const count = colour.values.filter((value) => value === k).length;
      button.append(sign, `${category.name} (${count})`);
      button.addEventListener("click", () => {
        alone = alone === k ? null : k;
        legend();
        draw();
        get("map-legend").children[k].focus();
      });
      box.append(button);
    });
  };

  // a tile of the sheet holds the stamp above the model
  const thumbnail = (k, scale, half) => {
    const canvas = document.createElement("canvas");
    const height = tiles.height / 2;
    canvas.width = tiles.width * scale;
    canvas.height = height * scale;
    const x = (k % tiles.columns) * tiles.width;
    const y = Math.floor(k / tiles.columns) * tiles.height + half * height;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.drawImage(sheet, x, y, tiles.width, height, 0, 0, canvas.width, canvas.height);
    return canvas;
  };

  const mark = () => {
    const marks = get("map-marks");
    if (!marks) return;
    marks.replaceChildren();
    if (shown < 0) return;
    const [x, y] = places[shown];
    const ring = OUTLINES.circle(x, y, 9);
    marks.append(element("path", { d: ring, class: "halo" }), element("path", { d: ring, class: "chosen" }));
  };

  const show = (k, aloud) => {
    if (k === shown && !aloud) return;
    shown = k;
    mark();
    const fact = data.facts[k];
    const rows = [["stamp", fact.id]];
    if (fact.object && fact.object !== fact.id) rows.push(["object", fact.object]);
    if (fact.ra !== null && fact.dec !== null) rows.push(["RA, Dec [deg]", `${fact.ra}, ${fact.dec}`]);
    for (const colour of data.colours) rows.push([colour.name, told(colour, k)]);
    get("stamp-facts").replaceChildren(...rows.map(([name, value]) => {
      const row = document.createElement("div");
      const term = document.createElement("dt");
      const text = document.createElement("dd");
      [term.textContent, text.textContent] = [name, value];
      row.append(term, text);
      return row;
    }));
    const large = [`Stamp ${fact.id}`, `What the model makes of stamp ${fact.id}`].map((label, half) => {
      const canvas = thumbnail(k, 3, half);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", label);
      return canvas;
    });
    get("stamp-thumbs").replaceChildren(...large);
    get("near-title").hidden = !data.near[k].length;
    get("stamp-near").replaceChildren(...data.near[k].map((other) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Go to stamp ${data.facts[other].id}`);
      button.title = data.facts[other].id;
      button.append(thumbnail(other, 2, 0));
      button.addEventListener("click", () => { kept = true; show(other, true); });
      return button;
    }));
    if (aloud) get("map-status").textContent = rows.slice(0, 6).map((row) => row.join(" ")).join(", ");
  };

  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const scale = WIDTH / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    let best = -1, least = (NEAR_ENOUGH * Math.max(1, scale)) ** 2;
    places.forEach(([px, py], k) => {
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) [best, least] = [k, far];
    });
    return best;
  };
  plot.addEventListener("pointermove", (event) => {
    const k = kept ? -1 : nearest(event);
    if (k >= 0) show(k, false);
  });
  plot.addEventListener("click", (event) => {
    const k = nearest(event);
    kept = k >= 0 && !(kept && k === shown);
    if (k >= 0) show(k, true);
  });

  // the next stamp is the nearest within 45 degrees of the arrow
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const towards = ([dx, dy]) => {
    const [x, y] = places[shown];
    let best = -1, least = Infinity;
    places.forEach(([px, py], k) => {
      const ahead = (px - x) * dx + (py - y) * dy;
      const aside = Math.abs((px - x) * dy + (py - y) * dx);
      if (k === shown || ahead <= 0 || aside > ahead) return;
      const far = ahead + 2 * aside;
      if (far < least) [best, least] = [k, far];
    });
    return best;
  };
  // the stamp nearest the middle stamp of both axes
  const innermost = () => {
    const middle = [0, 1].map((axis) => places.map((at) => at[axis]).sort((a, b) => a - b)[n >> 1]);
    const far = places.map(([x, y]) => Math.hypot(x - middle[0], y - middle[1]));
    return far.indexOf(Math.min(...far));
  };
  plot.addEventListener("keydown", (event) => {
    let k = -1;
    if (event.key in STEPS) k = shown < 0 ? innermost() : towards(STEPS[event.key]);
    else if (event.key === "Home") k = innermost();
    else if (event.key === "Enter" || event.key === " ") kept = !kept;
    else if (event.key === "Escape") kept = false;
    else return;
    event.preventDefault();
    if (k >= 0) show(k, true);
  });
  plot.addEventListener("focus", () => {
    if (shown < 0 && n && plot.matches(":focus-visible")) show(innermost(), true);
  });

  const choices = (select, names) => {
    select.replaceChildren(...names.map((name) => new Option(name)));
    select.closest("label").hidden = names.length < 2;
  };
  choices(get("map-layout"), data.layouts.map(({ name }) => name));
  choices(get("map-colour"), data.colours.map(({ name }) => name));
  get("map-layout").addEventListener("change", () => { place(); draw(); });
  get("map-colour").addEventListener("change", () => { alone = null; legend(); draw(); });
  const begin = () => { place(); legend(); draw(); if (n) show(innermost(), false); };
  if (sheet.complete) begin();
  else sheet.addEventListener("load", begin);
})();
