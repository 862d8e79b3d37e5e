// The page: what is said is kept here and sent anew with every question.

import { ApiError, chat, models, setKey } from "./api.js";
import { dataUrl, filesOf } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const RANGES = ["temperature", "top_p", "guidance"];

let known = [];       // models
let turns = [];       // {role, text, pictures: [url], images: [url], node}
let waiting = [];     // pictures to send
let running = null;   // AbortController of the answer under way

// Settings and the theme outlive the page; what is said does not.

function keep(name, value) {
  try { localStorage.setItem(`chiasm-${name}`, value); } catch { /* private mode */ }
}
function kept(name) {
  try { return localStorage.getItem(`chiasm-${name}`); } catch { return null; }
}

function theme(name) {
  document.documentElement.dataset.theme = name;
}
const dark = matchMedia("(prefers-color-scheme: dark)");
theme(kept("theme") || (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => { if (!kept("theme")) theme(dark.matches ? "dark" : "light"); });
$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  theme(next);
  keep("theme", next);
});

for (const name of RANGES) {
  const show = () => { $(`${name}-shown`).textContent = Number($(name).value).toFixed(2); };
  $(name).addEventListener("input", () => { $(name).dataset.set = "yes"; show(); });
  show();
}
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings-button").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
});

// Models

async function start() {
  try {
    known = await models();
  } catch (error) {
    if (error.status === 401) return askKey();
    return tell(error.message);
  }
  const talking = known.filter((model) => model.capabilities.includes("chat"));
  $("model").replaceChildren(...talking.map((model) => new Option(model.id, model.id)));
  if (talking.some((model) => model.id === kept("model"))) $("model").value = kept("model");
  if (!talking.length) tell("No model here talks; the API gives embeddings.");
  switched();
  $("words").focus();
}

function askKey() {
  $("key-dialog").showModal();
  $("key-dialog").addEventListener("close", () => { setKey($("key").value); start(); }, { once: true });
}

function switched() {
  const model = known.find((one) => one.id === $("model").value);
  const draws = Boolean(model?.capabilities.includes("images"));
  $("draw-label").hidden = $("can-draw").hidden = !draws;
  document.querySelectorAll(".draws").forEach((node) => { node.hidden = !draws; });
  if (!draws) $("draw").checked = false;
  keep("model", $("model").value);
}
$("model").addEventListener("change", switched);

// Pictures to send

async function add(files) {
  for (const file of files) {
    try {
      waiting.push(await dataUrl(file));
    } catch (error) {
      tell(error.message);
    }
  }
  showWaiting();
  $("words").focus();
}

function showWaiting() {
  $("pictures").replaceChildren(...waiting.map((url, number) => {
    const item = document.createElement("li");
    const remove = button("×", () => { waiting.splice(number, 1); showWaiting(); $("words").focus(); });
    remove.setAttribute("aria-label", `Remove picture ${number + 1}`);
    item.append(picture(url, `Picture ${number + 1} to send`), remove);
    return item;
  }));
}

$("file").addEventListener("change", () => { add($("file").files); $("file").value = ""; });
document.addEventListener("paste", (event) => {
  const files = filesOf(event.clipboardData);
  if (files.length) { event.preventDefault(); add(files); }
});
for (const type of ["dragenter", "dragover"]) {
  document.addEventListener(type, (event) => { event.preventDefault(); $("chat").classList.add("over"); });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("chat").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("chat").classList.remove("over");
  add(filesOf(event.dataTransfer));
});

// Turns

function button(text, act) {
  const node = document.createElement("button");
  node.type = "button";
  node.textContent = text;
  node.addEventListener("click", act);
  return node;
}

function picture(url, alt) {
  const node = document.createElement("img");
  node.src = url;
  node.alt = alt;
  return node;
}

function show(turn) {
  $("welcome").hidden = true;
  turn.node = document.createElement("article");
  turn.node.className = `turn ${turn.role}`;
  const who = document.createElement("div");
  who.className = "who";
  who.textContent = turn.role === "user" ? "You" : turn.model;
  turn.bubble = document.createElement("div");
  turn.bubble.className = "bubble";
  turn.bubble.textContent = turn.text;
  turn.node.append(who, ...turn.pictures.map((url) => picture(url, "Picture you sent")), turn.bubble);
  $("chat").append(turn.node);
  down(true);
}

function down(always = false) {
  const chat = $("chat");
  const near = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 120;
  if (near || always) chat.scrollTop = chat.scrollHeight;
}

// For ears: the whole answer once, not every piece of it.
function tell(text) {
  $("said").textContent = text;
  if (!turns.length) {
    const line = document.createElement("p");
    line.className = "error";
    line.textContent = text;
    $("welcome").append(line);
  }
}

function content(turn) {
  if (!turn.pictures.length) return turn.text;
  const parts = turn.pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  return turn.text ? [...parts, { type: "text", text: turn.text }] : parts;
}

function request() {
  const messages = turns.map((turn) => ({
    role: turn.role,
    content: content(turn),
    ...(turn.images.length && {
      images: turn.images.map((url) => ({ type: "image_url", image_url: { url } })),
    }),
  }));
  const system = $("system").value.trim();
  if (system) messages.unshift({ role: "system", content: system });
  const asked = { model: $("model").value, messages, max_tokens: Number($("max_tokens").value) || 256 };
  const draw = $("draw").checked;
  if (draw) Object.assign(asked, { modalities: ["image"], progress: true });
  if ($("seed").value !== "") asked.seed = Number($("seed").value);
  // What nobody touched is left to the server, which draws warmer than it talks.
  for (const name of RANGES) {
    if ($(name).dataset.set && (name !== "guidance" || draw)) asked[name] = Number($(name).value);
  }
  return asked;
}

async function answer() {
  const asked = request();
  const here = turns; // a new chat may begin before this one has ended
  const turn = { role: "assistant", text: "", pictures: [], images: [], model: asked.model };
  show(turn);
  running = new AbortController();
  busy(true);
  let bar = null;
  try {
    for await (const chunk of chat(asked, running.signal)) {
      const delta = chunk.choices[0]?.delta || {};
      if (delta.content) {
        turn.text += delta.content;
        turn.bubble.textContent = turn.text;
      }
      if (delta.drawing) {
        if (!bar) turn.node.append(bar = progress());
        bar.max = delta.drawing.of;
        bar.value = delta.drawing.done;
      }
      for (const part of delta.images || []) {
        bar?.remove();
        bar = null;
        const url = part.image_url.url;
        const drawn = picture(url, `Picture drawn for: ${here.at(-1)?.text || "your message"}`);
        drawn.className = "drawn";
        turn.images.push(url);
        turn.node.append(drawn);
      }
      down();
    }
    $("said").textContent = turn.text || (turn.images.length ? "A picture was drawn." : "No words.");
  } catch (error) {
    bar?.remove();
    if (error.name === "AbortError") note(turn, "Stopped.");
    else {
      const again = error instanceof ApiError && error.retry ? ` Try again in ${error.retry} s.` : "";
      note(turn, error.message + again, true);
      $("said").textContent = error.message;
    }
  }
  if (turn.text || turn.images.length) here.push(turn);
  tools(turn);
  running = null;
  busy(false);
  down();
}

function progress() {
  const bar = document.createElement("progress");
  bar.setAttribute("aria-label", "Drawing");
  return bar;
}

function note(turn, text, bad = false) {
  const line = document.createElement("div");
  line.className = bad ? "error" : "who";
  line.textContent = text;
  turn.node.append(line);
}

// Only the last answer can be asked for again.
function tools(turn) {
  document.querySelectorAll(".tools").forEach((node) => node.remove());
  const row = document.createElement("div");
  row.className = "tools";
  row.append(button("Regenerate", () => {
    if (running) return;
    if (turns.at(-1) === turn) turns.pop();
    turn.node.remove();
    answer();
  }));
  turn.node.append(row);
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("chat").setAttribute("aria-busy", String(is));
  if (!is) $("words").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("words").value.trim();
  if (running || (!text && !waiting.length) || !$("model").value) return;
  const turn = { role: "user", text, pictures: waiting, images: [] };
  waiting = [];
  $("words").value = "";
  grow();
  showWaiting();
  document.querySelectorAll(".tools").forEach((node) => node.remove());
  turns.push(turn);
  show(turn);
  answer();
});
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", () => {
  running?.abort();
  turns.forEach((turn) => turn.node.remove());
  document.querySelectorAll(".turn").forEach((node) => node.remove());
  turns = [];
  $("welcome").hidden = false;
  $("words").focus();
});

function grow() {
  $("words").style.height = "auto";
  $("words").style.height = `${$("words").scrollHeight + 2}px`;
}
$("words").addEventListener("input", grow);
$("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
  if (event.key === "Escape") running?.abort();
});

start();
