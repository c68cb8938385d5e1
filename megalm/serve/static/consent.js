// Whether models may be trained on a conversation: what the reader wants, and how the server comes to know it.

import { tell } from "./dom.js";
import { readSettings } from "./preferences.js";
import { isWriting } from "./writing.js";

const WAITS = [0, 500, 1500, 4000]; // ms; what is kept of an answer that broke off is there a moment later
const said = new Map(); // the reader's last word by a conversation's id: it may have been opened anew meanwhile

// What holds for a conversation; until it begins, or is told otherwise, what is set for new ones.
export function consentOf(conversation) {
  return conversation.consent ?? readSettings().consent;
}

// Throws ApiError; then all is as it was. That the server does not know the conversation yet is no error.
export async function changeConsent(store, conversation, isOn) {
  const before = conversation.consent;
  conversation.consent = isOn; // at once: an answer may end meanwhile
  said.set(conversation.id, isOn);
  try {
    await store.change(conversation.id, { consent: isOn });
  } catch (error) {
    if (error.status !== 404) {
      conversation.consent = before;
      said.set(conversation.id, before);
      throw error;
    }
    // An answer that is being written settles it at its end.
    if (conversation.exchanges.length && !isWriting(conversation.id)) settleConsent(store, conversation);
  }
}

// After answers that may have been kept with another consent than is wanted now. Never throws.
export async function settleConsent(store, conversation) {
  let failed = null;
  for (const wait of WAITS) {
    await new Promise((resume) => setTimeout(resume, wait));
    try {
      await store.change(conversation.id, { consent: said.get(conversation.id) ?? conversation.consent });
      conversation.isKnown = true;
      return;
    } catch (error) {
      failed = error;
    }
  }
  // A conversation of which nothing was kept needs no consent.
  if (failed.status !== 404)
    tell(
      `The server does not know whether \u201c${conversation.title}\u201d may train models: ${failed.message}`,
    );
}
