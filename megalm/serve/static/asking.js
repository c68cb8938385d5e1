// Asks for one answer and follows it as it is written.

import { chat } from "./api.js";
import { consentOf, settleConsent } from "./consent.js";
import { randomId, readSettings } from "./preferences.js";
import { begun, ended } from "./writing.js";

const ALTERNATIVES = 5;

// What the server is asked. `place`: how many answers to this prompt there are; with a seed each is another. consent: null
// where the server knows it: it may have been changed elsewhere.
function bodyOf(conversation, exchange, features, place, consent) {
  const settings = readSettings();
  const body = {
    model: exchange.model,
    messages: exchange.messages,
    temperature: settings.temperature,
    top_p: settings.topP,
    stream_options: { include_usage: true },
  };
  if (settings.maxTokens) body.max_tokens = settings.maxTokens;
  if (settings.seed !== null) body.seed = settings.seed + place;
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  if (features.feedback) {
    const metadata = { conversation: conversation.id };
    if (consent !== null) metadata.consent = consent ? "yes" : "no";
    const parent = conversation.exchanges.find((one) => one.reply === exchange.parent);
    if (parent && parent.isSaved !== false) metadata.parent = parent.reply;
    Object.assign(body, { store: true, metadata });
  }
  return body;
}

// An exchange that has not begun. `parent`: the reply that it goes on from.
export function freshExchange(model, messages, parent = null) {
  const choice = { index: 0, content: "", finish_reason: null, rating: null, edit: null, tokens: [] };
  return {
    reply: randomId(), // the server's own replaces it
    isSaved: false,
    model,
    parent,
    created: Date.now() / 1000,
    messages,
    choices: [choice],
    state: "running",
    error: null,
  };
}

// Fills `exchange` and calls `changed` as it grows; never throws: how it ended is in exchange.state and exchange.error.
export async function ask({ features, store }, conversation, exchange, place, changed) {
  const stopping = new AbortController();
  const [choice] = exchange.choices;
  exchange.stop = () => stopping.abort();
  begun(exchange, conversation);
  conversation.consent = consentOf(conversation);
  const consent = conversation.isKnown ? null : conversation.consent;
  let frame = 0; // what comes between two frames is drawn once
  const drawn = () => {
    frame = 0;
    changed();
  };
  const start = performance.now();
  changed();
  try {
    for await (const part of chat(
      bodyOf(conversation, exchange, features, place, consent),
      stopping.signal,
    )) {
      exchange.reply = part.id;
      if (part.usage) exchange.tokens = part.usage.completion_tokens;
      for (const piece of part.choices ?? []) {
        choice.content += piece.delta?.content ?? "";
        choice.tokens.push(...(piece.logprobs?.content ?? []));
        choice.refusal = piece.delta?.refusal ?? choice.refusal;
        choice.finish_reason = piece.finish_reason ?? choice.finish_reason;
      }
      frame ||= requestAnimationFrame(drawn);
    }
    exchange.state = "done";
    // What the server's policy has refused to hear is not kept.
    exchange.isSaved = features.feedback && choice.refusal !== choice.content;
  } catch (error) {
    exchange.state = error.name === "AbortError" ? "stopped" : "failed";
    // Of an answer that is stopped the server keeps what it had sent.
    exchange.isSaved = features.feedback && exchange.state === "stopped" && choice.content !== "";
    if (exchange.state === "failed") exchange.error = { message: error.message, status: error.status };
  }
  conversation.isKnown ||= exchange.isSaved;
  // What was told may be out of date by now; and of an answer that failed midway the server may have kept the beginning.
  const isHalf = exchange.state === "failed" && choice.content !== "";
  if (features.feedback && consent !== null && (isHalf || conversation.consent !== consent))
    settleConsent(store, conversation);
  exchange.seconds = (performance.now() - start) / 1000;
  delete exchange.stop;
  ended(exchange);
  cancelAnimationFrame(frame);
  changed();
}
