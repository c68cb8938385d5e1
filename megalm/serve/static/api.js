// Speaks with the server: plain requests, and answers that come piece by piece.

import { secret, userId } from "./preferences.js";

const ROOT = new URL(".", document.baseURI); // relative: the server may stand behind a proxy's prefix

// What the server, or the way to it, has against a request. status: 0 where there was no answer at all.
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(body) {
  const found = { "x-user": userId() };
  if (body !== undefined) found["Content-Type"] = "application/json";
  if (secret.get()) found.Authorization = `Bearer ${secret.get()}`;
  return found;
}

async function send(path, { method, body, signal } = {}) {
  let answer;
  try {
    answer = await fetch(new URL(path, ROOT), {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: headers(body),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // A proxy's page of errors: the status has to do.
  }
  return new ApiError(told.message ?? `The server answered ${answer.status}.`, answer.status);
}

// The JSON of an answer. Throws ApiError, and AbortError after `signal`.
export async function call(path, options) {
  return (await send(path, options)).json();
}

// The same as text.
export async function callText(path, options) {
  return (await send(path, options)).text();
}

// The data of server-sent events, whatever the pieces in which their bytes come.
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {}); // already broken where the connection is
  }
}

// The parts of a streamed chat. Throws ApiError where one is an error, or the stream breaks off.
export async function* chat(body, signal) {
  const answer = await send("v1/chat/completions", { body: { ...body, stream: true }, signal });
  try {
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const part = JSON.parse(data);
      if (part.error) throw new ApiError(part.error.message, 200);
      yield part;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection broke off.", 0);
  }
  throw new ApiError("The connection broke off.", 0);
}
