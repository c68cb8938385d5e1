// The dialog with everything that can be set: how answers are written, the key, what may be done with the words, colours.

import { call } from "./api.js";
import { changeConsent, consentOf } from "./consent.js";
import { confirmed } from "./dialogs.js";
import { button, el, freshId, tell } from "./dom.js";
import { check, field, number, part } from "./fields.js";
import {
  chooseTheme,
  forgetUser,
  readSettings,
  secret,
  sessionConversations,
  themeChoice,
  writeSettings,
} from "./preferences.js";
import { isWriting } from "./writing.js";

// app: {features, store, conversation(), subject(), save(kind), reload(), forget(), themed()}; `first`: the name of the field to begin with.
export function openSettings(app, first) {
  const heading = freshId("settings");
  const keyBefore = secret.get();
  const dialog = el("dialog", {
    class: "settings",
    "aria-labelledby": heading,
    on: {
      close: () => {
        dialog.remove();
        if (secret.get() !== keyBefore) app.reload();
      },
    },
  });
  const close = button("Done", () => dialog.close(), { class: "button primary" });
  const parts = [answers(), access(), appearance(app)];
  if (app.features.feedback) parts.splice(1, 0, consent(app));
  parts.push(data(app, dialog));
  dialog.append(el("div", { class: "dialog-head" }, el("h2", { id: heading }, "Settings"), close), ...parts);
  document.body.append(dialog);
  dialog.showModal();
  (dialog.querySelector(`[name="${first}"]`) ?? close).focus();
}

function answers() {
  const settings = readSettings();
  const system = el("textarea", {
    rows: "3",
    name: "system",
    value: settings.system,
    on: { change: () => writeSettings({ system: system.value }) },
  });
  return part(
    "Answers",
    field("System prompt", system, "Stands before every conversation; empty: none."),
    el(
      "div",
      { class: "pair" },
      number("temperature", "Temperature", "0 takes the likeliest token; more is freer.", {
        min: "0",
        max: "100",
        step: "any",
        required: true,
      }),
      number("topP", "Top p", "Of the likeliest tokens with this share together.", {
        min: "0",
        max: "1",
        step: "any",
        required: true,
      }),
      number("maxTokens", "Most tokens", "Length of an answer.", { min: "1", step: "1" }, "what fits"),
      number(
        "seed",
        "Seed",
        "The same seed repeats an answer; a retry counts up.",
        { min: "0", max: "9007199254740000", step: "1" },
        "a new one each time",
      ),
    ),
    check(
      "Token probabilities",
      "Each answer brings how likely its tokens were, and what else might have stood there.",
      settings.logprobs,
      (isOn) => writeSettings({ logprobs: isOn }),
      "logprobs",
    ),
  );
}

// One switch for the conversation that is shown, one for those to come: each shows what will be used.
function consent(app) {
  const conversation = app.subject();
  const own = check(
    "This conversation may train models",
    `\u201c${conversation.title}\u201d: what has been said in it, and what will be.`,
    consentOf(conversation),
    async (isOn, input) => {
      try {
        await changeConsent(app.store, conversation, isOn);
        tell(isOn ? "Thank you: this conversation may train models." : "This conversation trains no model.");
      } catch (error) {
        input.checked = !isOn;
        tell(`Not changed: ${error.message}`);
      }
    },
    "consent",
  );
  const later = check(
    "New ones may train models",
    "Conversations and comparisons that begin from now on.",
    readSettings().consent,
    (isOn) => {
      writeSettings({ consent: isOn });
      own.querySelector("input").checked = consentOf(conversation); // one that has not begun is a new one
      tell(isOn ? "Thank you: new conversations may train models." : "New conversations train no model.");
    },
    "consentLater",
  );
  const about =
    "Off: conversations, ratings and edits are kept for you and counted, and no model learns from them. On: they may train the next models, after personal " +
    "data have been masked. You can change your mind at any time; a model that has been trained does not forget.";
  return part("Consent", el("p", { class: "soft" }, about), own, later);
}

function access() {
  const key = el("input", {
    type: "password",
    name: "key",
    autocomplete: "off",
    spellcheck: "false",
    value: secret.get() ?? "",
    on: {
      change: () => secret.set(key.value.trim() || null),
    },
  });
  return part(
    "Access",
    field("API key", key, "Only where the server asks for one. It is forgotten when this tab is closed."),
  );
}

function appearance(app) {
  const name = freshId("theme");
  const options = [
    ["system", "As the system"],
    ["light", "Light"],
    ["dark", "Dark"],
  ].map(([value, words]) =>
    el(
      "label",
      { class: "chip" },
      el("input", {
        type: "radio",
        name,
        value,
        checked: themeChoice() === value,
        on: {
          change: () => {
            chooseTheme(value);
            app.themed();
          },
        },
      }),
      el("span", {}, words),
    ),
  );
  return part(
    "Appearance",
    el("fieldset", {}, el("legend", {}, "Colours"), el("div", { class: "chips" }, ...options)),
  );
}

function data(app, dialog) {
  const wipe = async () => {
    if (isWriting()) {
      tell("An answer is being written: stop it first."); // it would be kept after all
      return;
    }
    const what = app.features.feedback
      ? "All your conversations, ratings, comparisons and edits are deleted at the server, at once and for good."
      : "All conversations of this tab are deleted.";
    if (!(await confirmed("Delete all my data?", what, "Delete everything"))) return;
    try {
      if (app.features.feedback) await call("v1/feedback/data", { method: "DELETE" });
    } catch (error) {
      tell(`Nothing was deleted: ${error.message}`);
      return;
    }
    sessionConversations.set(null);
    forgetUser();
    dialog.close();
    app.forget();
    tell("Your data are deleted.");
  };
  return part(
    "Your data",
    el("p", { class: "soft" }, `\u201c${app.conversation().title}\u201d as a file:`),
    el(
      "div",
      { class: "row" },
      button("Markdown", () => app.save("md")),
      button("JSON", () => app.save("json")),
    ),
    el("div", { class: "row" }, button("Delete all my data", wipe, { class: "button danger" })),
  );
}
