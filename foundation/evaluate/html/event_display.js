// Objects to turn and zoom: every view of a display shows the same object, of truth or of a model, from the same side.
"use strict";
(function () {
  const STEPS = 65535;
  const START = { yaw: -0.65, pitch: 0.42, zoom: 1, x: 0, y: 0 };
  const CORNERS = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]];
  const EDGES = [[0, 1], [0, 2], [0, 4], [1, 3], [1, 5], [2, 3], [2, 6], [3, 7], [4, 5], [4, 6], [5, 7], [6, 7]];

  function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Uint16Array(bytes.buffer);
  }

  function short(value) {
    return String(Number(value.toPrecision(3)));
  }

  function display(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const views = Array.from(box.querySelectorAll(".view"));
    const canvases = views.map((view) => view.querySelector("canvas"));
    const width = data.flat ? 3 : 4;
    const camera = Object.assign({}, START);
    let event = 0;
    let faintest = 0;
    let points = [];

    // From a place in the unit box to the plane of the screen, in units of the view's size.
    function project(x, y, z) {
      const longest = Math.max(...data.box.aspect);
      const a = ((x - 0.5) * data.box.aspect[0]) / longest;
      const b = ((y - 0.5) * data.box.aspect[1]) / longest;
      if (data.flat) return [a, -b, 0, 1];
      const c = ((z - 0.5) * data.box.aspect[2]) / longest;
      const across = a * Math.cos(camera.yaw) - b * Math.sin(camera.yaw);
      const away = a * Math.sin(camera.yaw) + b * Math.cos(camera.yaw);
      const up = c * Math.cos(camera.pitch) - away * Math.sin(camera.pitch);
      const depth = c * Math.sin(camera.pitch) + away * Math.cos(camera.pitch);
      const near = 2.6 / (2.6 + depth);
      return [across * near, -up * near, depth, near];
    }

    function paint(canvas, hits) {
      const w = canvas.clientWidth;
      const h = canvas.clientHeight;
      if (!w || !h) return;
      const density = window.devicePixelRatio || 1;
      if (canvas.width !== Math.round(w * density) || canvas.height !== Math.round(h * density)) {
        canvas.width = Math.round(w * density);
        canvas.height = Math.round(h * density);
      }
      const pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.setTransform(density, 0, 0, density, 0, 0);
      pen.fillStyle = "#101318";
      pen.fillRect(0, 0, w, h);
      const scale = (data.flat ? 0.86 * Math.min(w, h) : 0.74 * Math.min(w, 1.2 * h)) * camera.zoom;
      const at = (p) => [w / 2 + camera.x * scale + p[0] * scale, h / 2 + camera.y * scale + p[1] * scale];
      frame(pen, at, w);
      const drawn = [];
      for (let i = 0; i < hits.length; i += width) {
        const shade = hits[i + width - 1] / STEPS;
        if (shade < faintest) continue;
        const p = project(hits[i] / STEPS, hits[i + 1] / STEPS, data.flat ? 0 : hits[i + 2] / STEPS);
        drawn.push([p, shade]);
      }
      drawn.sort((one, other) => (data.flat ? other[1] - one[1] : other[0][2] - one[0][2]));
      const usual = (0.042 * scale) / Math.pow(Math.max(16, hits.length / width), 0.25);
      for (const [p, shade] of drawn) {
        const [x, y] = at(p);
        const radius = data.flat
          ? Math.max(1.5, 0.05 * scale * Math.pow(10, (shade - 1) * 1.6))
          : usual * (0.45 + 0.55 * shade) * p[3];
        pen.globalAlpha = data.flat ? 0.75 : 0.65 + 0.35 * shade;
        pen.fillStyle = data.colours[Math.min(data.colours.length - 1, Math.floor(shade * data.colours.length))];
        pen.beginPath();
        pen.arc(x, y, radius, 0, 2 * Math.PI);
        pen.fill();
      }
      pen.globalAlpha = 1;
    }

    // The box, and beside one edge of each axis its label.
    function frame(pen, at, w) {
      pen.strokeStyle = "#5b6472";
      pen.fillStyle = "#c3c9d2";
      pen.lineWidth = 1;
      pen.font = "12px system-ui, sans-serif";
      pen.textAlign = "center";
      const places = CORNERS.map((c) => at(project(c[0], c[1], c[2])));
      const edges = data.flat ? [[0, 1], [0, 2], [1, 3], [2, 3]] : EDGES;
      pen.beginPath();
      for (const [from, to] of edges) {
        pen.moveTo(places[from][0], places[from][1]);
        pen.lineTo(places[to][0], places[to][1]);
      }
      pen.stroke();
      const middle = at([0, 0]);
      const ends = data.flat ? [[0, 1], [0, 2]] : [[0, 1], [0, 2], [0, 4]];
      ends.forEach(([from, to], axis) => {
        const x = (places[from][0] + places[to][0]) / 2;
        const y = (places[from][1] + places[to][1]) / 2;
        const far = Math.hypot(x - middle[0], y - middle[1]) || 1;
        const text = data.box.labels[axis];
        const half = pen.measureText(text).width / 2 + 4;
        pen.save();
        if (data.flat && axis === 1) {
          pen.translate(x - 8, y);
          pen.rotate(-Math.PI / 2);
          pen.fillText(text, 0, 0);
        } else {
          const beside = x + (half * (x - middle[0])) / far;
          pen.fillText(text, Math.min(w - half, Math.max(half, beside)), y + 4 + (16 * (y - middle[1])) / far);
        }
        pen.restore();
      });
    }

    let waiting = false;
    function draw() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(drawNow);
    }

    function drawNow() {
      waiting = false;
      canvases.forEach((canvas, k) => paint(canvas, points[k]));
    }

    function choose(number) {
      event = (number + data.events.length) % data.events.length;
      const sides = data.events[event].sides;
      points = sides.map((side) => unpacked(side.points));
      views.forEach((view, k) => (view.querySelector(".facts").textContent = sides[k].facts));
      list.value = String(event);
      draw();
    }

    function move(dx, dy) {
      if (data.flat) {
        camera.x += dx / (300 * camera.zoom);
        camera.y += dy / (300 * camera.zoom);
      } else {
        camera.yaw += dx / 150;
        camera.pitch = Math.min(1.57, Math.max(-1.57, camera.pitch + dy / 150));
      }
      draw();
    }

    function zoom(factor) {
      camera.zoom = Math.min(12, Math.max(0.4, camera.zoom * factor));
      draw();
    }

    function follow(canvas) {
      const fingers = new Map();
      let apart = 0;
      canvas.addEventListener("pointerdown", (e) => {
        canvas.setPointerCapture(e.pointerId);
        fingers.set(e.pointerId, [e.clientX, e.clientY]);
        apart = 0;
      });
      canvas.addEventListener("pointermove", (e) => {
        const before = fingers.get(e.pointerId);
        if (!before) return;
        fingers.set(e.pointerId, [e.clientX, e.clientY]);
        if (fingers.size === 1) {
          move(e.clientX - before[0], e.clientY - before[1]);
          return;
        }
        const [one, other] = Array.from(fingers.values());
        const now = Math.hypot(one[0] - other[0], one[1] - other[1]);
        if (apart) zoom(now / apart);
        apart = now;
      });
      for (const end of ["pointerup", "pointercancel"]) {
        canvas.addEventListener(end, (e) => {
          fingers.delete(e.pointerId);
          apart = 0;
        });
      }
      // The wheel scrolls the page, as everywhere, unless the display has the focus.
      canvas.addEventListener("wheel", (e) => {
        if (document.activeElement !== canvas) return;
        e.preventDefault();
        zoom(Math.exp(-e.deltaY / 500));
      }, { passive: false });
      canvas.addEventListener("keydown", (e) => {
        const step = { ArrowLeft: [-15, 0], ArrowRight: [15, 0], ArrowUp: [0, -15], ArrowDown: [0, 15] }[e.key];
        const factor = { "+": 1.2, "=": 1.2, "-": 1 / 1.2 }[e.key];
        if (!step && !factor) return;
        e.preventDefault();
        if (step) move(step[0], step[1]);
        if (factor) zoom(factor);
      });
      canvas.addEventListener("dblclick", reset);
      new ResizeObserver(draw).observe(canvas);
    }

    function reset() {
      Object.assign(camera, START);
      draw();
    }

    function button(words, label, action) {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = words;
      made.setAttribute("aria-label", label);
      made.addEventListener("click", action);
      bar.append(made);
    }

    function labelled(words, control) {
      const label = document.createElement("label");
      label.append(words + " ", control);
      bar.append(label);
    }

    const bar = box.querySelector(".bar");
    const list = document.createElement("select");
    data.events.forEach((e, k) => list.append(new Option(e.name, String(k))));
    list.addEventListener("change", () => choose(Number(list.value)));
    button("‹", "previous object", () => choose(event - 1));
    labelled("object", list);
    button("›", "next object", () => choose(event + 1));
    button("+", "zoom in", () => zoom(1.25));
    button("−", "zoom out", () => zoom(1 / 1.25));
    button("reset view", "reset the view", reset);
    const threshold = document.createElement("input");
    threshold.type = "range";
    threshold.min = "0";
    threshold.max = "0.95";
    threshold.step = "0.01";
    threshold.value = "0";
    threshold.addEventListener("input", () => {
      faintest = Number(threshold.value);
      draw();
    });
    labelled("hide faint", threshold);
    const scale = document.createElement("div");
    scale.className = "scale";
    const colours = document.createElement("div");
    colours.style.background = "linear-gradient(to right, " + data.colours.join(", ") + ")";
    const low = document.createElement("span");
    low.textContent = "≤ " + short(data.energy.low);
    const high = document.createElement("span");
    high.textContent = short(data.energy.high) + " " + data.energy.label;
    scale.append(low, colours, high);
    bar.append(scale);
    canvases.forEach(follow);
    addEventListener("beforeprint", drawNow);
    choose(Math.floor(data.events.length / 2));
  }

  for (const box of document.querySelectorAll(".events")) display(box);
})();
