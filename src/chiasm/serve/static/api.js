// The server's API: the key, requests, and answers that come piece by piece.

let key = takeKey();

function takeKey() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (found) {
    sessionStorage.setItem("key", found);
    history.replaceState(null, "", location.pathname); // not to be seen, copied or bookmarked
  }
  return sessionStorage.getItem("key") || "";
}

export function setKey(value) {
  key = value.trim();
  sessionStorage.setItem("key", key);
}

export class ApiError extends Error {
  constructor(message, status, retry) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${key}`, ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status has to do */ }
  throw new ApiError(message, response.status, response.headers.get("Retry-After"));
}

export async function models() {
  return (await (await call("/v1/models")).json()).data;
}

function post(path, request, signal) {
  const headers = { "Content-Type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(request), signal });
}

// Where a model looked when it gave a reply: an image for each of the conversation's.
export async function looks(request) {
  return (await (await post("/v1/attributions", request)).json()).data;
}

// Yields the chunks of a chat's answer.
export async function* chat(request, signal) {
  const response = await post("/v1/chat/completions", { ...request, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError("The answer broke off.", 0);
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const said = event.replace(/^data: /, "");
      if (said === "[DONE]") return;
      const chunk = JSON.parse(said);
      if (chunk.error) throw new ApiError(chunk.error.message, 0);
      yield chunk;
    }
  }
}
