// The page of a grid: which axes lie where, zoom and pan of all cells at once, and two pictures against each other.
(function () {
  "use strict";
  var axes = DATA.axes.map(function (axis, i) {
    var role = DATA.columns.indexOf(i) >= 0 ? "columns" : DATA.rows.indexOf(i) >= 0 ? "rows" : "one";
    return { name: axis.name, values: axis.values, role: role, one: 0, shown: axis.values.map(function () { return true; }) };
  });
  var root = document.documentElement;
  var sheet = document.getElementById("sheet");
  var zoom = { z: 1, x: 0, y: 0 };
  var picked = { a: null, b: null };
  var order = [];
  var viewer = document.getElementById("viewer");
  var stage = document.getElementById("stage");
  var looking = { cell: null, pair: false, mode: "swipe" };

  function element(name, attributes, children) {
    var made = document.createElement(name);
    Object.keys(attributes || {}).forEach(function (key) {
      if (key === "text") { made.textContent = attributes[key]; } else { made.setAttribute(key, attributes[key]); }
    });
    (children || []).forEach(function (child) { made.appendChild(child); });
    return made;
  }
  function byId(id) { return document.getElementById(id); }

  function number(place) {
    return axes.reduce(function (n, axis, i) { return n * axis.values.length + place[i]; }, 0);
  }
  function place(n) {
    var values = [];
    for (var i = axes.length - 1; i >= 0; i--) {
      values[i] = n % axes[i].values.length;
      n = Math.floor(n / axes[i].values.length);
    }
    return values;
  }
  function labels(n) {
    return place(n).map(function (value, i) { return axes[i].values.length > 1 || i < 2 ? axes[i].values[value] : null; })
      .filter(function (label) { return label !== null; }).join(" · ").replace(/\n/g, ", ");
  }

  // All combinations of the shown values of the axes with this role, the last one fastest.
  function combinations(role) {
    return axes.reduce(function (all, axis, i) {
      if (axis.role !== role) { return all; }
      var next = [];
      all.forEach(function (combination) {
        axis.values.forEach(function (label, value) {
          if (axis.shown[value]) { next.push(combination.concat([[i, value]])); }
        });
      });
      return next;
    }, [[]]);
  }
  function told(combination) {
    return combination.filter(function (pair) { return axes[pair[0]].values.length > 1 || pair[0] < 2; })
      .map(function (pair) { return axes[pair[0]].values[pair[1]]; }).join("\n");
  }

  function view(n) {
    var cell = DATA.cells[n];
    if (cell.picture === null) { return element("div", { "class": "failed", text: cell.failed || "not made" }); }
    var source = PICTURES[cell.picture] || cell.file;
    var image = element("img", { src: source, alt: labels(n), width: cell.size[0], height: cell.size[1], loading: "lazy", draggable: "false" });
    return element("div", { "class": "view", "data-cell": n }, [image]);
  }

  function draw() {
    var columns = combinations("columns");
    var rows = combinations("rows");
    var table = element("table");
    var head = element("tr", {}, [element("th", { "aria-label": "Row" })]);
    columns.forEach(function (column) { head.appendChild(element("th", { scope: "col", text: told(column) })); });
    if (columns.some(told)) { table.appendChild(element("thead", {}, [head])); }
    var body = element("tbody");
    order = rows.map(function (row) {
      var line = element("tr", {}, [element("th", { scope: "row", text: told(row) })]);
      var numbers = columns.map(function (column) {
        var at = axes.map(function (axis) { return axis.role === "one" ? axis.one : 0; });
        row.concat(column).forEach(function (pair) { at[pair[0]] = pair[1]; });
        var n = number(at);
        var cell = element("div", { "class": "cell" }, [view(n)]);
        if (DATA.cells[n].picture !== null) {
          cell.appendChild(element("div", { "class": "pick" }, ["a", "b"].map(function (side) {
            var title = "Take as " + side.toUpperCase();
            return element("button", { type: "button", text: side.toUpperCase(), title: title, "aria-label": title + ": " + labels(n), "data-pick": side, "data-number": n, "aria-pressed": String(picked[side] === n) });
          })));
        }
        line.appendChild(element("td", {}, [cell]));
        return n;
      });
      body.appendChild(line);
      return numbers;
    });
    table.appendChild(body);
    sheet.replaceChildren(table);
  }

  function controls() {
    var box = byId("axes");
    box.replaceChildren();
    axes.forEach(function (axis, i) {
      if (axis.values.length < 2) { return; }
      var choice = element("select", { "aria-label": "Where " + axis.name + " lies" });
      [["columns", "in columns"], ["rows", "in rows"], ["one", "one at a time"]].forEach(function (role) {
        var option = element("option", { value: role[0], text: role[1] });
        option.selected = axis.role === role[0];
        choice.appendChild(option);
      });
      choice.addEventListener("change", function () { axis.role = choice.value; controls(); draw(); });
      var line = element("div", { "class": "axis", role: "group", "aria-label": axis.name }, [element("b", { text: axis.name }), choice]);
      axis.values.forEach(function (label, value) {
        var one = axis.role === "one";
        var input = element("input", { type: one ? "radio" : "checkbox", name: "axis-" + i });
        input.checked = one ? axis.one === value : axis.shown[value];
        input.addEventListener("change", function () {
          if (one) { axis.one = value; } else { axis.shown[value] = input.checked; }
          draw();
        });
        var text = element("span", { text: label.replace(/\n/g, ", "), title: label });
        line.appendChild(element("label", {}, [input, text]));
      });
      box.appendChild(line);
    });
    byId("axes-box").hidden = !box.children.length;
  }

  function setZoom(z, fx, fy) {
    // The point (fx, fy) of the view, in shares of its sides, stays where it is.
    z = Math.min(12, Math.max(1, z));
    zoom.x = (zoom.x + fx) * z / zoom.z - fx;
    zoom.y = (zoom.y + fy) * z / zoom.z - fy;
    zoom.z = z;
    show();
  }
  function show() {
    zoom.x = Math.min(zoom.z - 1, Math.max(0, zoom.x));
    zoom.y = Math.min(zoom.z - 1, Math.max(0, zoom.y));
    root.style.setProperty("--z", zoom.z);
    root.style.setProperty("--px", zoom.x);
    root.style.setProperty("--py", zoom.y);
    root.classList.toggle("zoomed", zoom.z > 1);
    byId("zoom").value = zoom.z;
    byId("zoom-out").textContent = Math.round(zoom.z * 100) / 100 + "x";
  }
  function at(view, event) {
    var box = view.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  var fingers = {};
  var moved = 0;
  var spread = 0;
  function distance() {
    var all = Object.values(fingers);
    return Math.hypot(all[0].x - all[1].x, all[0].y - all[1].y);
  }
  document.addEventListener("pointerdown", function (event) {
    var view = event.target.closest(".view");
    if (!view || event.button) { return; }
    fingers[event.pointerId] = { x: event.clientX, y: event.clientY, view: view };
    moved = 0;
    if (Object.keys(fingers).length === 2) { spread = distance(); }
  });
  document.addEventListener("pointermove", function (event) {
    var finger = fingers[event.pointerId];
    if (!finger) { return; }
    var dx = event.clientX - finger.x, dy = event.clientY - finger.y;
    finger.x = event.clientX; finger.y = event.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    var box = finger.view.getBoundingClientRect();
    if (Object.keys(fingers).length === 2) {
      var now = distance();
      var point = at(finger.view, event);
      if (spread > 0) { setZoom(zoom.z * now / spread, point[0], point[1]); }
      spread = now;
    } else if (zoom.z > 1) {
      zoom.x -= dx / box.width;
      zoom.y -= dy / box.height;
      show();
    }
  });
  ["pointerup", "pointercancel"].forEach(function (name) {
    document.addEventListener(name, function (event) { delete fingers[event.pointerId]; });
  });
  document.addEventListener("wheel", function (event) {
    var view = event.target.closest && event.target.closest(".view");
    if (!view || !(event.ctrlKey || event.metaKey)) { return; }
    event.preventDefault();
    var point = at(view, event);
    setZoom(zoom.z * Math.exp(-event.deltaY / 300), point[0], point[1]);
  }, { passive: false });
  byId("zoom").addEventListener("input", function () { setZoom(Number(this.value), 0.5, 0.5); });
  byId("reset").addEventListener("click", function () { zoom = { z: 1, x: 0, y: 0 }; show(); });
  byId("size").addEventListener("input", function () { root.style.setProperty("--cell", this.value + "px"); });

  sheet.addEventListener("click", function (event) {
    var pick = event.target.closest("[data-pick]");
    if (pick) {
      var side = pick.dataset.pick, n = Number(pick.dataset.number);
      picked[side] = picked[side] === n ? null : n;
      pairs();
      return;
    }
    var view = event.target.closest(".view");
    if (view && moved < 5) { open(Number(view.dataset.cell), false); }
  });
  function pairs() {
    sheet.querySelectorAll("[data-pick]").forEach(function (button) {
      button.setAttribute("aria-pressed", String(picked[button.dataset.pick] === Number(button.dataset.number)));
    });
    ["a", "b"].forEach(function (side) {
      byId("pair-" + side).textContent = side.toUpperCase() + ": " + (picked[side] === null ? "not chosen" : labels(picked[side]));
    });
    byId("pair").hidden = picked.a === null && picked.b === null;
    byId("pair-show").disabled = picked.a === null || picked.b === null;
  }
  byId("pair-show").addEventListener("click", function () { open(picked.a, true); });
  byId("pair-clear").addEventListener("click", function () { picked = { a: null, b: null }; pairs(); });

  function facts(n, name) {
    var cell = DATA.cells[n];
    var measured = DATA.measures.map(function (measure, i) { return measure + " " + cell.look[i]; }).join(", ");
    var link = element("a", { href: cell.file, text: decodeURIComponent(cell.file) });
    return element("div", {}, [element("b", { text: (name ? name + ": " : "") + labels(n) }), element("div", { "class": "soft", text: measured }), link, element("pre", { text: cell.text })]);
  }
  function open(n, pair) {
    looking.cell = n;
    looking.pair = pair;
    var shown = pair ? [picked.a, picked.b] : [n];
    var size = DATA.cells[shown[0]].size;
    viewer.style.setProperty("--aspect", size[0] / size[1]);
    stage.className = pair ? looking.mode : "";
    stage.replaceChildren.apply(stage, shown.map(view));
    byId("told").replaceChildren.apply(byId("told"), shown.map(function (n, i) { return facts(n, pair ? "AB"[i] : ""); }));
    byId("mode").hidden = !pair;
    byId("steps").hidden = pair;
    byId("swipe").hidden = !(pair && looking.mode === "swipe");
    byId("mode").querySelectorAll("button").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.mode === looking.mode));
    });
    if (!viewer.open) { viewer.showModal(); }
  }
  byId("mode").addEventListener("click", function (event) {
    if (event.target.dataset.mode) { looking.mode = event.target.dataset.mode; open(looking.cell, true); }
  });
  byId("swipe").addEventListener("input", function () { stage.style.setProperty("--at", this.value + "%"); });
  stage.style.setProperty("--at", "50%");
  function step(way) {
    var row = order.findIndex(function (line) { return line.indexOf(looking.cell) >= 0; });
    if (row < 0) { return; }
    var column = order[row].indexOf(looking.cell);
    var down = { up: -1, down: 1 }[way] || 0, right = { left: -1, right: 1 }[way] || 0;
    var line = order[row + down];
    var n = line && line[column + right];
    if (n !== undefined && DATA.cells[n].picture !== null) { open(n, false); }
  }
  byId("steps").addEventListener("click", function (event) {
    if (event.target.dataset.step) { step(event.target.dataset.step); }
  });
  byId("close").addEventListener("click", function () { viewer.close(); });
  viewer.addEventListener("click", function (event) { if (event.target === viewer) { viewer.close(); } });
  document.addEventListener("keydown", function (event) {
    if (!viewer.open || event.target.tagName === "INPUT") { return; }
    var way = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
    if (way && !looking.pair) { event.preventDefault(); step(way); }
  });

  if (window.matchMedia("(max-width: 560px)").matches) {
    byId("axes-box").open = false;
    byId("size").value = 144;
    root.style.setProperty("--cell", "144px");
  }
  controls();
  draw();
  pairs();
  show();
})();
