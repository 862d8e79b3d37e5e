// The page: what is said is kept here and sent anew with every question.

import { ApiError, chat, looks, models, setKey } from "./api.js";
import { canTake, take } from "./camera.js";
import { dataUrl, filesOf } from "./images.js";

const $ = (id) => document.getElementById(id);
const RANGES = ["temperature", "top_p", "guidance"];

let known = [];       // models
let turns = [];       // {role: "user", text, images: [url]} or {role: "assistant", replies}
                      // a reply is {model, text, images: [url], node}; two where models are compared
let waiting = [];     // images to send
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
  const options = () => talking.map((model) => new Option(model.id, model.id));
  $("model").replaceChildren(...options());
  $("other").replaceChildren(new Option("nobody", ""), ...options());
  $("beside").hidden = talking.length < 2;
  if (talking.some((model) => model.id === kept("model"))) $("model").value = kept("model");
  if (!talking.length) tell("No model here talks; the API gives embeddings.");
  switched();
  $("words").focus();
}

function askKey() {
  $("key-dialog").showModal();
  $("key-dialog").addEventListener("close", () => { setKey($("key").value); start(); }, { once: true });
}

function chosen() {
  return [...new Set([$("model").value, $("other").value].filter(Boolean))];
}

function switched() {
  const draws = chosen().some(canDraw);
  $("draw-label").hidden = $("can-draw").hidden = !draws;
  document.querySelectorAll(".draws").forEach((node) => { node.hidden = !draws; });
  if (!draws) $("draw").checked = false;
  keep("model", $("model").value);
}
$("model").addEventListener("change", switched);
$("other").addEventListener("change", switched);

function canDraw(name) {
  return Boolean(known.find((one) => one.id === name)?.capabilities.includes("images"));
}

// Images to send

async function add(files) {
  tell("");
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
  $("images").replaceChildren(...waiting.map((url, number) => {
    const item = document.createElement("li");
    const remove = button("×", () => { waiting.splice(number, 1); showWaiting(); $("words").focus(); });
    remove.setAttribute("aria-label", `Remove image ${number + 1}`);
    item.append(image(url, `Image ${number + 1} to send`), remove);
    return item;
  }));
}

$("file").addEventListener("change", () => { add($("file").files); $("file").value = ""; });
$("camera").hidden = !canTake;
$("camera").addEventListener("click", async () => {
  try {
    const file = await take();
    if (file) await add([file]);
  } catch (error) {
    tell(error.message);
  }
  $("words").focus();
});
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

function image(url, alt) {
  const node = document.createElement("img");
  node.src = url;
  node.alt = alt;
  return node;
}

// What one side says, in a place; said: {text, node, bubble}.
function show(said, role, name, images, place) {
  $("welcome").hidden = true;
  said.node = document.createElement("article");
  said.node.className = `turn ${role}`;
  const who = document.createElement("div");
  who.className = "who";
  who.textContent = name;
  said.bubble = document.createElement("div");
  said.bubble.className = "bubble";
  said.bubble.textContent = said.text;
  said.node.append(who, ...images.map((url) => image(url, "Image you sent")), said.bubble);
  place.append(said.node);
  down(true);
}

function down(always = false) {
  const chat = $("chat");
  const near = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 120;
  if (near || always) chat.scrollTop = chat.scrollHeight;
}

// What went wrong beside the conversation, until something else is done.
function tell(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

const parts = (urls) => urls.map((url) => ({ type: "image_url", image_url: { url } }));

// A turn as one of the models is told of it: with its own replies, where it has given some.
function message(turn, model) {
  if (turn.role === "user") {
    const words = turn.text ? [{ type: "text", text: turn.text }] : [];
    const content = turn.images.length ? [...parts(turn.images), ...words] : turn.text;
    return { role: "user", content };
  }
  const reply = turn.replies.find((one) => one.model === model) || turn.replies[0];
  const images = reply.images.length ? { images: parts(reply.images) } : {};
  return { role: "assistant", content: reply.text, ...images };
}

// What a model is told of a conversation.
function told(model, said) {
  const messages = said.map((turn) => message(turn, model));
  const system = $("system").value.trim();
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

function request(model) {
  const messages = told(model, turns);
  const asked = { model, messages, max_tokens: Number($("max_tokens").value) || 256 };
  const drawing = $("draw").checked && canDraw(model);
  if (drawing) Object.assign(asked, { modalities: ["image"], progress: true });
  if ($("seed").value !== "") asked.seed = Number($("seed").value);
  // What nobody touched is left to the server, which draws warmer than it talks.
  for (const name of RANGES) {
    if ($(name).dataset.set && (name !== "guidance" || drawing)) asked[name] = Number($(name).value);
  }
  return asked;
}

async function answer() {
  const here = turns; // a new chat may begin before this one has ended
  const place = document.createElement("div");
  const models = chosen();
  if (models.length > 1) place.className = "pair";
  $("chat").append(place);
  running = new AbortController();
  busy(true);
  const replies = models.map((model) => ({ model, text: "", images: [] }));
  await Promise.all(replies.map((reply) => one(reply, place, running.signal)));
  const heard = replies.filter((reply) => reply.text || reply.images.length);
  const turn = { role: "assistant", replies: heard };
  if (heard.length) here.push(turn);
  if (heard.length) $("said").textContent = heard.map(spoken).join(" ");
  tools(turn, place);
  running = null;
  busy(false);
  down();
}

function spoken(reply) {
  return reply.text || "An image was drawn.";
}

// One model's reply, as it comes.
async function one(reply, place, signal) {
  show(reply, "assistant", reply.model, [], place);
  let frame = null;
  try {
    for await (const chunk of chat(request(reply.model), signal)) {
      const delta = chunk.choices[0]?.delta || {};
      if (delta.content) {
        reply.text += delta.content;
        reply.bubble.textContent = reply.text;
      }
      if (delta.drawing) {
        if (!frame) reply.node.append(frame = canvas());
        frame.draw(delta.drawing);
      }
      for (const part of delta.images || []) {
        frame?.remove();
        frame = null;
        const url = part.image_url.url;
        const drawn = image(url, `Image drawn for: ${turns.at(-1)?.text || "your message"}`);
        drawn.className = "drawn";
        reply.images.push(url);
        reply.node.append(drawn);
      }
      down();
    }
    if (!reply.text && !reply.images.length) note(reply, "It said nothing.");
  } catch (error) {
    frame?.remove();
    if (error.name === "AbortError") note(reply, "Stopped.");
    else {
      const again = error instanceof ApiError && error.retry ? ` Try again in ${error.retry} s.` : "";
      note(reply, error.message + again, true);
    }
  }
}

// An image under way: as far as it is drawn, and how far that is.
function canvas() {
  const frame = document.createElement("div");
  frame.className = "canvas";
  const bar = document.createElement("progress");
  bar.setAttribute("aria-label", "Drawing");
  frame.append(bar);
  frame.draw = ({ done, of, image_url }) => {
    bar.max = of;
    bar.value = done;
    if (!image_url) return;
    frame.querySelector("img")?.remove();
    frame.prepend(image(image_url.url, ""));
  };
  return frame;
}

function note(reply, text, bad = false) {
  const line = document.createElement("div");
  line.className = bad ? "error" : "who";
  line.textContent = text;
  reply.node.append(line);
  if (bad) $("said").textContent = text;
}

// Only the last answer can be asked for again, and asked where it came from.
function tools(turn, place) {
  document.querySelectorAll(".tools").forEach((node) => node.remove());
  const row = document.createElement("div");
  row.className = "tools";
  row.append(button("Regenerate", () => {
    if (running) return;
    if (turns.at(-1) === turn) turns.pop();
    place.remove();
    answer();
  }));
  const before = turns.slice(0, turns.indexOf(turn));
  const hasImages = before.some((one) => one.images?.length || one.replies?.some((r) => r.images.length));
  const spoken = (turn.replies || []).filter((reply) => reply.text);
  if (hasImages && spoken.length) row.append(looker(spoken, before));
  place.lastElementChild.append(row);
}

// A button that shows and hides where models looked when they gave their replies.
function looker(replies, before) {
  const node = button("Where it looked", async () => {
    if (node.getAttribute("aria-pressed") === "true") {
      replies.forEach((reply) => reply.node.querySelector(".look")?.remove());
      node.setAttribute("aria-pressed", "false");
      return;
    }
    node.disabled = true;
    await Promise.all(replies.map((reply) => look(reply, before)));
    node.disabled = false;
    node.setAttribute("aria-pressed", "true");
    down();
  });
  node.setAttribute("aria-pressed", "false");
  return node;
}

async function look(reply, before) {
  try {
    const found = await looks({ model: reply.model, messages: told(reply.model, before), reply: reply.text });
    const figure = document.createElement("figure");
    figure.className = "look";
    figure.append(...found.map((one, number) =>
      image(one.image_url.url, `Where ${reply.model} looked in image ${number + 1}, in orange`)));
    const caption = document.createElement("figcaption");
    caption.textContent = "What the model sees; orange: what spoke for this answer";
    figure.append(caption);
    reply.bubble.after(figure);
  } catch (error) {
    note(reply, error.message, true);
  }
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
  tell("");
  const turn = { role: "user", text, images: waiting };
  waiting = [];
  $("words").value = "";
  grow();
  showWaiting();
  document.querySelectorAll(".tools").forEach((node) => node.remove());
  turns.push(turn);
  show(turn, "user", "You", turn.images, $("chat"));
  answer();
});
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", () => {
  running?.abort();
  document.querySelectorAll("#chat > :not(#welcome)").forEach((node) => node.remove());
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
