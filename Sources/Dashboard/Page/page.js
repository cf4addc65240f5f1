// SPDX-License-Identifier: Apache-2.0
// Draws what /api/v1/events tells each second. Read-only; text goes in as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const HISTORY = 60;
let last = null; // the state before, for rates
let state = null;
const history = new Map(); // by peer: received and sent bytes a second

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("data-") || key.startsWith("aria-") || key === "scope" || key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
}

function scaled(value, unit) {
  const prefixes = ["", "k", "M", "G", "T"];
  let index = 0;
  while (value >= 1000 && index < prefixes.length - 1) { value /= 1000; index += 1; }
  return `${index === 0 ? Math.round(value) : value.toPrecision(3)} ${prefixes[index]}${unit}`;
}

function age(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

function rate(now, before, seconds) {
  return before === undefined || seconds <= 0 || now < before ? 0 : (now - before) / seconds;
}

const tone = (action) => (action === "tunnel" ? "encrypted" : action === "drop" ? "dropped" : "clear");
const peerKey = (node, peer) => `${node.name}>${peer.node}/${peer.family}/${peer.publicKey}`;

// ---- head ------------------------------------------------------------------

function drawFacts() {
  $("title").textContent = state.title;
  document.title = `wgplane ${state.title}`;
  const facts = [];
  const only = state.nodes.length === 1 ? state.nodes[0] : null;
  if (only) {
    facts.push(only.mode, only.backend && `WireGuard: ${only.backend}`, only.steeringPath && `path ${only.steeringPath}`);
    facts.push(only.strictMode ? "strict" : "not strict", `datastore ${only.datastoreState}`);
    if (!only.agentRunning) facts.push("agent is not running");
    if (only.export) facts.push(`export ${only.export}`);
  } else {
    const encrypted = state.nodes.filter((n) => n.mode !== "disabled").length;
    facts.push(`${state.nodes.length} nodes`, `${encrypted} encrypting`);
  }
  $("facts").replaceChildren(...facts.filter(Boolean).map((text) => element("li", { textContent: text })));
  const problems = state.nodes.flatMap((node) => node.problems.map((problem) => ({ node: node.name, ...problem })));
  $("problems").hidden = problems.length === 0;
  const texts = problems.map((p) => `${only ? "" : p.node + ": "}${p.text}`).join("\n");
  if ($("problem-list").dataset.texts !== texts) {
    $("problem-list").dataset.texts = texts;
    $("problem-list").replaceChildren(...problems.map((p) =>
      element("li", { class: p.severity, textContent: `${only ? "" : p.node + ": "}${p.severity}: ${p.text}` })));
  }
}

// ---- peers -----------------------------------------------------------------

function chart(points) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "chart");
  svg.setAttribute("viewBox", `0 0 ${HISTORY - 1} 40`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const top = Math.max(1, ...points.map((p) => Math.max(p.received, p.sent)));
  for (const name of ["received", "sent"]) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    line.setAttribute("class", name);
    line.setAttribute("points", points.map((p, i) =>
      `${HISTORY - points.length + i},${(38 - (p[name] / top) * 36).toFixed(1)}`).join(" "));
    svg.append(line);
  }
  return svg;
}

function drawPeers(seconds) {
  const before = new Map();
  for (const node of last ? last.nodes : []) for (const peer of node.peers) before.set(peerKey(node, peer), peer);
  const cards = [];
  for (const node of state.nodes) {
    for (const peer of node.peers) {
      const key = peerKey(node, peer);
      const old = before.get(key);
      const points = history.get(key) || [];
      if (old && seconds > 0) {
        points.push({ received: rate(peer.receivedBytes, old.receivedBytes, seconds), sent: rate(peer.sentBytes, old.sentBytes, seconds) });
        if (points.length > HISTORY) points.shift();
        history.set(key, points);
      }
      const now = points[points.length - 1] || { received: 0, sent: 0 };
      const name = state.nodes.length === 1 ? peer.node : `${node.name} → ${peer.node}`;
      const handshake = peer.latestHandshake ? age(state.time - peer.latestHandshake) : "never";
      cards.push(element("article", { class: `card ${tone(peer.action)}`, "data-peer": key },
        element("h3", {}, element("span", { textContent: name }),
          element("span", { class: `chip ${tone(peer.action)}`, textContent: peer.state === "ready" ? peer.action : `${peer.action}, ${peer.state}` })),
        element("div", { class: "sub", textContent: `${peer.family} ${peer.device} ${peer.endpoint}`, title: peer.publicKey }),
        element("dl", {},
          element("div", {}, element("dt", { textContent: "Handshake" }), element("dd", { class: "wide handshake", textContent: handshake })),
          element("div", {}, element("dt", { textContent: "In all" }),
            element("dd", { class: "received total-received", textContent: `${scaled(peer.receivedBytes, "B")} ↓`, "data-bytes": peer.receivedBytes }),
            element("dd", { class: "sent total-sent", textContent: `${scaled(peer.sentBytes, "B")} ↑`, "data-bytes": peer.sentBytes }))),
        element("div", { class: "rates" },
          element("span", { class: "received", textContent: `${scaled(now.received, "B/s")} ↓`, "aria-label": `received ${scaled(now.received, "bytes per second")}` }),
          element("span", { class: "sent", textContent: `${scaled(now.sent, "B/s")} ↑`, "aria-label": `sent ${scaled(now.sent, "bytes per second")}` })),
        chart(points)));
    }
  }
  if (cards.length === 0) cards.push(element("p", { class: "note", textContent: "No peers: WireGuard is switched off here, or no other node has it." }));
  $("cards").replaceChildren(...cards);
}

// ---- matrix ----------------------------------------------------------------

function drawMatrix() {
  const names = [...new Set([...state.nodes.map((n) => n.name), ...state.matrix.flatMap((c) => [c.from, c.to]),
    ...state.nodes.flatMap((n) => n.peers.map((p) => p.node))])].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const cells = new Map(state.matrix.map((c) => [`${c.from}>${c.to}`, c]));
  const head = element("tr", {}, element("th", { scope: "col", textContent: "from \\ to" }),
    ...names.map((name) => element("th", { scope: "col", textContent: name })));
  const rows = names.map((from) => element("tr", {}, element("th", { scope: "row", textContent: from }),
    ...names.map((to) => {
      if (from === to) return element("td", { textContent: "–" });
      const cell = cells.get(`${from}>${to}`);
      const kind = !cell ? "idle" : cell.dropped ? "dropped" : cell.clear ? "clear" : cell.encrypted ? "encrypted" : "idle";
      const parts = cell ? ["encrypted", "clear", "dropped"].filter((k) => cell[k]).map((k) => `${cell[k]} ${k}`) : [];
      return element("td", { class: kind, "data-cell": `${from}>${to}`, textContent: parts.join(", ") || "idle" });
    })));
  $("matrix").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// ---- flows and drops --------------------------------------------------------

const flowKey = (f) => `${f.node}|${f.transport}|${f.source}|${f.sourcePort}|${f.destination}|${f.destinationPort}`;
const side = (name, address, port) => {
  const text = name || (address.includes(":") && port ? `[${address}]` : address);
  return port ? `${text}:${port}` : text;
};

function drawFlows(seconds) {
  const before = new Map((last ? last.flows : []).map((f) => [flowKey(f), f.bytes + f.reverseBytes]));
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = state.flows.map((f) => {
    const bytes = f.bytes + f.reverseBytes;
    return { f, bytes, speed: rate(bytes, before.get(flowKey(f)), seconds) };
  }).filter(({ f }) => {
    const text = [f.node, f.transport, f.source, f.destination, f.sourceName, f.destinationName, f.sourcePort, f.destinationPort, f.way, f.peer, f.verdict, f.dropReason].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  $("flow-count").textContent = `${rows.length} of ${state.flowCount}`;
  const kind = (way) => (way === "tunnel" ? "encrypted" : way === "clear" || way === "mixed" ? "clear" : "idle");
  $("flows").tBodies[0].replaceChildren(...rows.map(({ f, bytes, speed }) => element("tr", {},
    element("td", { textContent: f.transport }),
    element("td", { textContent: side(f.sourceName, f.source, f.sourcePort), title: f.source }),
    element("td", { textContent: side(f.destinationName, f.destination, f.destinationPort), title: f.destination }),
    element("td", {}, element("span", { class: `chip ${kind(f.way)}`, textContent: f.way })),
    element("td", { textContent: f.peer || "–" }),
    element("td", { class: "number", textContent: scaled(speed * 8, "bit/s") }),
    element("td", { class: "number", textContent: scaled(bytes, "B") }),
    element("td", { class: "number", textContent: f.packets + f.reversePackets }),
    element("td", { textContent: f.dropReason ? `${f.verdict}, ${f.dropReason}` : f.verdict }))));
}

function drawDrops(seconds) {
  const key = (d) => `${d.node}|${d.hook}|${d.reason}`;
  const before = new Map((last ? last.drops : []).map((d) => [key(d), d.packets]));
  const rows = state.drops.map((d) => element("tr", {},
    element("td", { textContent: d.node }), element("td", {}, element("span", { class: "chip dropped", textContent: d.reason })),
    element("td", { textContent: d.hook }),
    element("td", { class: "number", textContent: Math.round(rate(d.packets, before.has(key(d)) ? before.get(key(d)) : d.packets, seconds)) }),
    element("td", { class: "number", textContent: d.packets }), element("td", { textContent: d.text })));
  if (rows.length === 0) rows.push(element("tr", {}, element("td", { colSpan: 6, textContent: "Nothing was dropped." })));
  $("drops").tBodies[0].replaceChildren(...rows);
}

function drawSettings() {
  const text = JSON.stringify(state.nodes.map((n) => [n.name, n.settings]));
  if ($("settings").dataset.text === text) return;
  $("settings").dataset.text = text;
  $("settings").replaceChildren(...state.nodes.map((node) => element("details", {},
    element("summary", { textContent: `${node.name}: ${node.settings.filter((s) => s.origin !== "default").length} set, ${node.settings.length} in all` }),
    element("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": `Settings of ${node.name}` }, element("table", {},
      element("thead", {}, element("tr", {}, ...["Setting", "Value", "From"].map((t) => element("th", { scope: "col", textContent: t })))),
      element("tbody", {}, ...node.settings.map((s) => element("tr", {},
        element("td", { textContent: s.name }), element("td", { textContent: s.value || "unset" }), element("td", { textContent: s.origin })))))))));
}

function draw(next) {
  const seconds = state ? next.time - state.time : 0;
  last = state;
  state = next;
  drawFacts();
  drawPeers(seconds);
  drawMatrix();
  drawFlows(seconds);
  drawDrops(seconds);
  drawSettings();
  document.body.dataset.updates = Number(document.body.dataset.updates || 0) + 1;
}

// ---- theme and events --------------------------------------------------------

const themes = { auto: "◐", light: "☀", dark: "☾" };
function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").textContent = themes[name];
  $("theme").setAttribute("aria-label", `Theme: ${name === "auto" ? "automatic" : name}`);
  try { localStorage.setItem("theme", name); } catch { /* private windows */ }
}
let theme = "auto";
try { theme = localStorage.getItem("theme") in themes ? localStorage.getItem("theme") : "auto"; } catch { /* likewise */ }
setTheme(theme);
$("theme").addEventListener("click", () => {
  const names = Object.keys(themes);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  setTheme(theme);
});
$("filter").addEventListener("input", () => { if (state) drawFlows(0); });

const events = new EventSource("api/v1/events");
events.addEventListener("message", (event) => {
  $("link").textContent = "live";
  $("link").className = "";
  draw(JSON.parse(event.data));
});
events.addEventListener("error", () => {
  const isOver = events.readyState === EventSource.CLOSED;
  $("link").textContent = isOver ? "connection refused, load the page again" : "connection lost, trying again";
  $("link").className = "lost";
});
